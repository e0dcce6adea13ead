//! `tidegate materialize`: a process that folds streams into the cache, and serves nobody but operators.

use std::{net::SocketAddr, path::PathBuf};

use super::serve::run_until_told;
use crate::config::{self, Config, Problem, Problems, Role};

#[derive(clap::Args, Debug)]
pub(super) struct Materialize {
    /// The configuration's file: that of the nodes will do
    #[arg(long)]
    config: PathBuf,
    /// Where operators connect, instead of the configuration's address
    #[arg(long)]
    admin: Option<SocketAddr>,
}

impl Materialize {
    /// Folds until a signal ends it.
    pub(super) fn run(self) -> Result<(), String> {
        run_until_told(move || self.load(), None)
    }

    /// The configuration as it is written now, of a materializer and nothing else.
    fn load(&self) -> Result<Config, Problems> {
        let mut config = Config::load(Some(&self.config), config::environment())?;
        config.roles = vec![Role::Materializer];
        if let Some(address) = self.admin {
            config.admin.address = address;
        }
        match config.cannot_materialize() {
            None => Ok(config),
            Some(expected) => Err(Problems(vec![Problem {
                path: "tidegate materialize".to_owned(),
                variable: None,
                found: self.config.display().to_string(),
                expected: expected.to_owned(),
            }])),
        }
    }
}
