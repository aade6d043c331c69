//! From what the user calls a model to a directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The demo model's place in the repository and beside an installed binary.
const DEMO: &str = "demo/llava-shapes";

/// A directory, `org/name[@revision]` in the Hugging Face cache, or the bundled demo.
///
/// # Errors
/// If nothing is there; the message says where it was looked for.
pub fn model(name: Option<&str>) -> Result<PathBuf> {
    let Some(name) = name else { return demo() };
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        bail!("{name} is a file; name the directory that holds config.json and the safetensors");
    }
    match name.split_once('/') {
        Some((org, rest)) if is_plain(org) && !rest.contains('/') => cached(&cache_root()?, org, rest),
        _ => bail!("{name} is neither a directory nor org/name of a model in the Hugging Face cache"),
    }
}

fn demo() -> Result<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(DEMO)));
    let places: Vec<PathBuf> = beside.into_iter().chain([Path::new(env!("CARGO_MANIFEST_DIR")).join(DEMO)]).collect();
    match places.iter().find(|p| p.join("config.json").is_file()) {
        Some(place) => Ok(place.clone()),
        None => bail!("the demo model is not at {}; name a model", list(&places)),
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\\'])
}

/// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
fn cache_root() -> Result<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
        .context("neither HF_HUB_CACHE nor HF_HOME nor a home directory says where the Hugging Face cache is")
}

fn cached(root: &Path, org: &str, rest: &str) -> Result<PathBuf> {
    let (name, revision) = rest.split_once('@').unwrap_or((rest, "main"));
    if !is_plain(name) || !is_plain(revision) {
        bail!("{org}/{rest} is not org/name or org/name@revision");
    }
    let repo = root.join(format!("models--{org}--{name}"));
    if !repo.is_dir() {
        bail!("{org}/{name} is not in the Hugging Face cache at {}; download it first", root.display());
    }
    // A branch or tag is a file that holds the commit; a commit is a snapshot's name already.
    let commit = fs::read_to_string(repo.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
    let commit = commit.trim();
    let snapshot = repo.join("snapshots").join(commit);
    if !is_plain(commit) || !snapshot.is_dir() {
        bail!("{} has no snapshot {revision}; download it again", repo.display());
    }
    Ok(snapshot)
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_or_a_commit_names_a_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let repo = root.path().join("models--org--name");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::create_dir_all(repo.join("snapshots/abc123")).unwrap();
        fs::write(repo.join("refs/main"), "abc123\n").unwrap();
        let expected = repo.join("snapshots/abc123");
        assert_eq!(cached(root.path(), "org", "name").unwrap(), expected);
        assert_eq!(cached(root.path(), "org", "name@abc123").unwrap(), expected);
        assert!(cached(root.path(), "org", "name@v2").unwrap_err().to_string().contains("no snapshot v2"));
        assert!(cached(root.path(), "org", "other").unwrap_err().to_string().contains("not in the Hugging Face cache"));
        fs::write(repo.join("refs/main"), "../../etc").unwrap();
        assert!(cached(root.path(), "org", "name").is_err());
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        assert!(model(Some("/no/such/directory")).unwrap_err().to_string().contains("/no/such/directory"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(model(file.path().to_str()).unwrap_err().to_string().contains("is a file"));
    }
}
