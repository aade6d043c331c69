//! The pages name what is there: files, and anchors of other pages.

use std::fs;
use std::path::{Path, PathBuf};

/// README, CHANGELOG, CONTRIBUTING and all of docs/.
fn pages() -> Vec<PathBuf> {
    let own = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(PathBuf::from);
    let docs = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path());
    own.into_iter().chain(docs.filter(|path| path.extension().is_some_and(|e| e == "md"))).collect()
}

/// Targets of `[words](target)` outside code.
fn links(text: &str) -> Vec<&str> {
    let mut code = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    });
    prose.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// What a heading is called in a link.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(name).collect()
}

/// What is wrong with the links of a page.
fn broken(page: &Path, text: &str) -> Vec<String> {
    let there = |link: &str| {
        let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
        let path = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
        let names =
            |anchor| fs::read_to_string(&path).is_ok_and(|text| anchors(&text).iter().any(|name| name == anchor));
        path.exists() && anchor.is_none_or(names)
    };
    let inside = links(text).into_iter().filter(|link| !link.contains("://"));
    inside.filter(|link| !there(link)).map(str::to_owned).collect()
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let broken = broken(&page, &fs::read_to_string(&page).unwrap());
        assert!(broken.is_empty(), "{}: {broken:?}", page.display());
    }
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let text = "# Two words\n[a](#two-words) [b](#three-words) [c](docs/none.md) [d](https://example.org/none)\n```\n[e](none)\n```\n";
    let page = std::env::temp_dir().join(format!("ocelli-page-{}.md", std::process::id()));
    fs::write(&page, text).unwrap();
    let broken = broken(&page, text);
    fs::remove_file(&page).unwrap();
    assert_eq!(broken, ["#three-words", "docs/none.md"]);
}

/// Nobody reads a page that no other leads to.
#[test]
fn the_readme_leads_to_every_page() {
    let readme = fs::read_to_string("README.md").unwrap();
    let named = links(&readme);
    for page in pages().iter().filter(|page| page.starts_with("docs")) {
        assert!(named.iter().any(|link| Path::new(link) == page), "README.md does not lead to {}", page.display());
    }
}
