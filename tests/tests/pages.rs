//! What the pages for people show works: their links lead somewhere, the README's configuration is one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tidegate::config::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.ends_with("node_modules") {
            continue;
        } else if path.is_dir() {
            pages(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "md") {
            found.push(path);
        }
    }
    Ok(())
}

/// The anchors of a page's headings, as the usual renderers make them.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter })
            .collect()
    };
    headings.map(anchor).collect()
}

/// The targets of a page's links, but those of other hosts.
fn links(page: &str) -> Vec<&str> {
    let targets = page
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn every_link_leads_somewhere() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ] {
        found.push(root().join(name));
    }
    pages(&root().join("docs"), &mut found)?;
    let (mut broken, mut links_seen) = (Vec::new(), 0);
    for path in found {
        let page = fs::read_to_string(&path)?;
        for link in links(&page) {
            links_seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(&path).join(file),
            };
            let leads = target.exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(&target)?).contains(&anchor.to_owned()));
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(links_seen > 30);
    Ok(())
}

#[test]
fn the_configuration_that_the_readme_shows_is_good() -> anyhow::Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let shown = readme
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let file = std::env::temp_dir().join(format!("tidegate-readme-{}.toml", std::process::id()));
    fs::write(&file, shown.unwrap_or_default())?;
    let config = Config::load(Some(&file), std::iter::empty::<(String, String)>());
    fs::remove_file(&file)?;
    let config = config.map_err(|problems| anyhow::anyhow!("{problems}"))?;
    assert_eq!(config.streams.len(), 1);
    assert_eq!(config.warnings(), Vec::<String>::new());
    Ok(())
}
