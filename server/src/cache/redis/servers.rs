//! Whether the servers are fit to hold a cache.

use redis::Value;

use super::{RedisCache, RedisError, RedisFault};

/// The only policy that loses no rows.
const NO_EVICTION: &str = "noeviction";

/// What looking at the servers came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The versions, one of each server.
    pub versions: Vec<String>,
    /// What could not be seen, and why: for the log.
    pub unseen: Vec<String>,
}

impl RedisCache {
    /// Looks whether each server is a primary and never evicts. Needs `INFO`; what a user may not see is said and passed over.
    ///
    /// # Errors
    /// When a server is not fit, or does not answer.
    pub async fn check(&self) -> Result<Checked, RedisError> {
        let mut checked = Checked::default();
        for section in ["server", "replication", "memory"] {
            match self.info(section).await {
                Ok(texts) => {
                    for text in texts {
                        self.look(section, &text, &mut checked)?;
                    }
                }
                Err(error) if error.fault() == RedisFault::NoPermission => {
                    checked.unseen.push(error.what().to_owned());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(checked)
    }

    /// A section of INFO, of every server.
    async fn info(&self, section: &str) -> Result<Vec<String>, RedisError> {
        let mut command = redis::cmd("INFO");
        command.arg(section);
        let answer: Value = self.link.call(None, &command).await?;
        Ok(texts(answer))
    }

    fn look(&self, section: &str, text: &str, checked: &mut Checked) -> Result<(), RedisError> {
        let unfit = |fault, what: String| Err(RedisError::new(fault, self.link.at(), None, what));
        match section {
            "server" => checked
                .versions
                .extend(line(text, "redis_version").map(str::to_owned)),
            "replication" => match line(text, "role") {
                Some("master") => {}
                Some(role) => {
                    let of = line(text, "master_host").unwrap_or("an unknown primary");
                    return unfit(RedisFault::ReadOnly, format!("its role is {role}, of {of}"));
                }
                None => checked.unseen.push("INFO names no role".to_owned()),
            },
            _ => match line(text, "maxmemory_policy") {
                Some(NO_EVICTION) => {}
                Some(policy) => {
                    return unfit(
                        RedisFault::Evicting,
                        format!("its maxmemory-policy is {policy}"),
                    );
                }
                None => checked
                    .unseen
                    .push("INFO names no maxmemory_policy".to_owned()),
            },
        }
        Ok(())
    }
}

fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    info.lines().find_map(value).map(str::trim)
}

/// One text of one server; of a cluster, one of each.
fn texts(answer: Value) -> Vec<String> {
    match answer {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(&bytes).into_owned()],
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => vec![text],
        Value::Map(nodes) => nodes
            .into_iter()
            .flat_map(|(_, text)| texts(text))
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_info_are_found_by_their_whole_name() {
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert_eq!(line(info, "maxmemory_policy"), Some("allkeys-lru"));
        assert_eq!(line(info, "memory"), None);
    }
}
