//! Which files of a directory are opened.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ocelli::mem::DType;
use ocelli::weights::{INDEX, SINGLE, Weights};

use crate::{fails, file, write};

fn open(dir: &Path) -> anyhow::Result<()> {
    Weights::open(dir).map(drop)
}

#[test]
fn one_file_opens_and_shares_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file(&[("a", "F32", &[2]), ("b", "I64", &[1])]);
    write(dir.path(), SINGLE, &bytes);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.files().collect::<Vec<_>>(), [(SINGLE, bytes.len() as u64)]);
    assert_eq!(weights.bytes_total(), 16);
    assert!(weights.warnings().is_empty());

    let a = weights.get("a").unwrap();
    let source = weights.source(a).unwrap();
    assert_eq!((source.bytes(), source.dtype(), source.len()), (&[1; 8][..], DType::F32, 2));
    let again = weights.source(a).unwrap();
    assert_eq!(source.bytes().as_ptr(), again.bytes().as_ptr(), "both are views of the one map");
    assert!(weights.source(weights.get("b").unwrap()).is_none(), "no buffer holds 64-bit integers");
    drop(weights);
    assert_eq!(source.bytes(), [1; 8], "a source keeps its map alive");
}

#[test]
fn a_directory_without_a_checkpoint_says_what_is_there_instead() {
    let dir = tempfile::tempdir().unwrap();
    fails(open(&dir.path().join("none")), &["none", "cannot open the model directory"]);
    fails(open(dir.path()), &["neither model.safetensors nor model.safetensors.index.json", "download"]);
    for pickle in ["pytorch_model.bin", "model.pt", "consolidated.00.pth"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), pickle, b"\x80\x02}q\x00.");
        fails(open(dir.path()), &[pickle, "only safetensors are ever opened", "convert"]);
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "model-00001-of-00002.safetensors", file(&[("a", "F32", &[1])]));
    fails(open(dir.path()), &["model-00001-of-00002.safetensors", INDEX]);
    write(dir.path(), "plain", b"");
    fails(open(&dir.path().join("plain")), &["is not a directory", "config.json"]);
}

#[test]
fn one_file_goes_before_an_index_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), SINGLE, file(&[("a", "F32", &[1])]));
    write(dir.path(), INDEX, "not even JSON");
    let weights = Weights::open(dir.path()).unwrap();
    assert!(weights.get("a").is_some());
    assert!(weights.warnings()[0].contains("index ignored"), "{:?}", weights.warnings());
}

#[test]
fn a_broken_file_is_named_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n");
    fails(open(dir.path()), &[dir.path().join(SINGLE).to_str().unwrap(), "Git LFS pointer"]);
    write(dir.path(), SINGLE, b"");
    fails(open(dir.path()), &[SINGLE, "empty"]);
}

#[test]
fn a_directory_in_place_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(SINGLE)).unwrap();
    fails(open(dir.path()), &[SINGLE, "a directory, not a regular file"]);
}

#[test]
fn the_file_may_be_replaced_but_not_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SINGLE);
    write(dir.path(), SINGLE, file(&[("a", "F32", &[4])]));
    let weights = Weights::open(dir.path()).unwrap();
    weights.check_unchanged().unwrap();

    let other = dir.path().join("new");
    fs::write(&other, file(&[("a", "F32", &[1])])).unwrap();
    fs::rename(&other, &path).unwrap();
    weights.check_unchanged().unwrap();
    assert_eq!(weights.source(weights.get("a").unwrap()).unwrap().bytes(), [1; 16], "the map keeps the old file");

    let weights = Weights::open(dir.path()).unwrap();
    let rewritten = fs::OpenOptions::new().write(true).open(&path).unwrap();
    rewritten.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    fails(weights.check_unchanged(), &[SINGLE, "was changed while it was being read"]);
    let weights = Weights::open(dir.path()).unwrap();
    rewritten.set_len(10).unwrap();
    fails(weights.check_unchanged(), &[SINGLE, "was changed"]);
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_may_not_be_read_is_refused_with_the_systems_words() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), SINGLE, file(&[("a", "F32", &[1])]));
        let path = dir.path().join(SINGLE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser reads anything; there is nothing to test then.
        if fs::File::open(&path).is_err() {
            fails(open(dir.path()), &[SINGLE, "cannot be opened", "denied"]);
        }
    }

    #[test]
    fn a_pipe_is_refused_instead_of_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join(SINGLE)).status();
        if made.is_ok_and(|status| status.success()) {
            fails(open(dir.path()), &[SINGLE, "a special file"]);
        }
    }

    #[test]
    fn a_link_inside_the_directory_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "weights-v2", file(&[("a", "F32", &[1])]));
        symlink("weights-v2", dir.path().join(SINGLE)).unwrap();
        open(dir.path()).unwrap();
    }

    #[test]
    fn a_link_out_of_the_directory_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), "secret", file(&[("a", "F32", &[1])]));
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path().join("secret"), dir.path().join(SINGLE)).unwrap();
        fails(open(dir.path()), &[SINGLE, "link out of the model directory"]);

        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("sub")).unwrap();
        symlink("sub/secret", dir.path().join(SINGLE)).unwrap();
        fails(open(dir.path()), &["link out of the model directory"]);
    }

    #[test]
    fn a_link_to_nothing_or_in_a_circle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("gone", dir.path().join(SINGLE)).unwrap();
        fails(open(dir.path()), &[SINGLE, "link to a file that is not there"]);
        let dir = tempfile::tempdir().unwrap();
        symlink(SINGLE, dir.path().join(SINGLE)).unwrap();
        fails(open(dir.path()), &[SINGLE, "cannot be opened"]);
    }

    /// The layout of a Hugging Face cache: `snapshots/<revision>/<file>` links to `blobs/<hash>`.
    fn cache(root: &Path, target: &str) -> std::path::PathBuf {
        let snapshot = root.join("models--a--b/snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(root.join("models--a--b/blobs/deeper")).unwrap();
        fs::create_dir_all(root.join("models--c--d/blobs")).unwrap();
        for blob in ["models--a--b/blobs/feed", "models--a--b/blobs/deeper/feed", "models--c--d/blobs/feed"] {
            write(root, blob, file(&[("a", "F32", &[1])]));
        }
        symlink(target, snapshot.join(SINGLE)).unwrap();
        snapshot
    }

    #[test]
    fn a_snapshot_of_the_hugging_face_cache_leads_to_its_own_blobs_only() {
        let root = tempfile::tempdir().unwrap();
        open(&cache(root.path(), "../../blobs/feed")).unwrap();
        for target in ["../../blobs/deeper/feed", "../../../models--c--d/blobs/feed"] {
            let root = tempfile::tempdir().unwrap();
            fails(open(&cache(root.path(), target)), &["link out of the model directory"]);
        }
    }

    #[test]
    fn the_model_directory_itself_may_be_a_link() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = cache(root.path(), "../../blobs/feed");
        symlink(snapshot, root.path().join("latest")).unwrap();
        open(&root.path().join("latest")).unwrap();
    }
}
