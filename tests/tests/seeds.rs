//! The inputs kept in `fuzz/seeds` break no promise, and every target has some.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tidegate_tests::fuzz::TARGETS;

fn files(folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(folder);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

#[test]
fn kept_inputs_break_no_promise() -> anyhow::Result<()> {
    for (target, check) in TARGETS {
        let seeds = files(&format!("seeds/{target}"))?;
        assert!(!seeds.is_empty(), "seeds/{target} is empty");
        for seed in seeds {
            println!("{}", seed.display()); // shown when the check panics
            check(&fs::read(&seed)?);
        }
    }
    Ok(())
}

#[test]
fn every_check_is_fuzzed() -> anyhow::Result<()> {
    let programs: BTreeSet<String> = files("src/bin")?
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    let checks = TARGETS
        .iter()
        .map(|(target, _)| (*target).to_owned())
        .collect();
    assert_eq!(programs, checks);
    Ok(())
}
