//! Who may know whom: the `use crate::` lines of every room, compared with the table in `ARCHITECTURE.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

type Rooms = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The table: room → the rooms that it may know. `all but …` and `all` are taken at their word.
fn table() -> anyhow::Result<Rooms> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let (_, section) = page
        .split_once("\n## The rooms\n")
        .context("no section of rooms")?;
    let lines: Vec<_> = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .collect();
    let cell = |line: &str, at: usize| line.split('|').nth(at).unwrap_or("").trim().to_owned();
    let names: BTreeSet<String> = lines
        .iter()
        .flat_map(|line| ticked(&cell(line, 1)))
        .collect();
    let known = |line: &str| {
        let (allowed, words) = (cell(line, 3), ticked(&cell(line, 3)));
        if allowed.starts_with("all") {
            &names - &words
        } else {
            words
        }
    };
    Ok(lines
        .iter()
        .flat_map(|line| {
            ticked(&cell(line, 1))
                .into_iter()
                .map(|room| (room, known(line)))
        })
        .collect())
}

/// The words between back-ticks.
fn ticked(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Every source file of the server but its tests, by room.
fn sources() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let (src, mut found) = (
        root().join("server/src"),
        BTreeMap::<String, Vec<String>>::new(),
    );
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") && name != "tests" {
                let inner = path.strip_prefix(&src)?;
                let room = inner.iter().next().unwrap_or_default().to_string_lossy();
                let text = fs::read_to_string(&path)?;
                let text = text
                    .split("#[cfg(test)]")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                found
                    .entry(room.trim_end_matches(".rs").to_owned())
                    .or_default()
                    .push(text);
            }
        }
    }
    Ok(found)
}

/// The rooms that a text names behind `crate::`, one by one or in braces.
fn named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let before = text[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || before == '$' || text[..at].ends_with("[`") {
            continue; // another crate's, a macro's, or a link of a comment
        }
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(first_words(group)),
            None => rooms.extend(word(rest)),
        }
    }
    rooms
}

/// The first word of each item of a brace group, whatever is nested in it.
fn first_words(group: &str) -> Vec<String> {
    let (mut depth, mut outer) = (1, String::new());
    for letter in group.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match (depth, letter) {
            (0, _) => break,
            (1, letter) => outer.push(letter),
            _ => {}
        }
    }
    outer
        .split(',')
        .filter_map(|item| word(item.trim()))
        .collect()
}

fn word(text: &str) -> Option<String> {
    let word: String = text
        .chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

#[test]
fn no_room_knows_more_than_the_table_allows() -> anyhow::Result<()> {
    let table = table()?;
    let mut strangers = Vec::new();
    for (room, texts) in sources()? {
        if room == "main" || room == "lib" {
            continue;
        }
        let allowed = table
            .get(&room)
            .with_context(|| format!("the table has no room {room}"))?;
        let known: BTreeSet<String> = texts.iter().flat_map(|text| named(text)).collect();
        strangers.extend(
            known
                .difference(allowed)
                .filter(|known| **known != room)
                .map(|known| format!("{room} knows {known}")),
        );
    }
    assert!(strangers.is_empty(), "{strangers:#?}");
    Ok(())
}

#[test]
fn the_table_names_no_room_that_is_gone() -> anyhow::Result<()> {
    let rooms: BTreeSet<String> = sources()?.into_keys().collect();
    for (room, allowed) in table()? {
        for name in allowed.iter().chain([&room]) {
            assert!(rooms.contains(name), "there is no room {name}");
        }
    }
    Ok(())
}

#[test]
fn the_pure_rooms_know_no_clock() -> anyhow::Result<()> {
    let table = table()?;
    for room in [
        "model", "protocol", "decode", "session", "frame", "cache", "worker",
    ] {
        assert!(!table[room].contains("clock"), "{room}");
    }
    Ok(())
}

#[test]
fn a_breaker_gets_time_and_chance_as_arguments() -> anyhow::Result<()> {
    for file in ["breaker", "backoff"] {
        let text = fs::read_to_string(root().join(format!("server/src/upstream/{file}.rs")))?;
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["Instant", "tokio", "getrandom", "clock::", "SystemTime"] {
            assert!(!text.contains(word), "{file}: {word}");
        }
    }
    Ok(())
}

#[test]
fn names_are_found_in_braces_too() {
    let text = "use crate::{\n    a::{b, c::{d}},\n    e,\n    f_g::H,\n};\nuse crate::i::J;\nfn k(_: crate::l::M) {}\n/// [`crate::n`]\n";
    let expected = ["a", "e", "f_g", "i", "l"].map(str::to_owned);
    assert_eq!(named(text), BTreeSet::from(expected));
}
