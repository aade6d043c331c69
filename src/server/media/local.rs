//! Pictures in files, under one directory.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use percent_encoding::percent_decode_str;

use super::MediaError;

/// The file behind `file:///PATH`. Whether something else exists outside `root`, nobody is told.
pub(super) fn read(url: &str, root: Option<&Path>, max_bytes: u64) -> Result<Vec<u8>, MediaError> {
    let Some(root) = root else {
        return Err(MediaError::not_allowed("file: URLs are not allowed here (--allowed-local-media-path DIR)"));
    };
    let rest = url.get("file:".len()..).unwrap_or_default();
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(MediaError::invalid("the file: URL names no file of this machine; write file:///PATH"));
    }
    let path = percent_decode_str(path).decode_utf8();
    let path = path.map_err(|_| MediaError::invalid("the file: URL's path is no UTF-8"))?;
    let outside =
        || MediaError::not_allowed("the file: URL names no file under the directory of --allowed-local-media-path");
    let path = fs::canonicalize(&*path).map_err(|_| outside())?;
    // A pipe or a device has no end, and opening one may wait for somebody.
    if !path.starts_with(root) || !fs::metadata(&path).is_ok_and(|m| m.is_file()) {
        return Err(outside());
    }
    let failed = |error: std::io::Error| MediaError::new("image_fetch_failed", format!("the file: {}", error.kind()));
    let mut bytes = Vec::new();
    File::open(&path).map_err(failed)?.take(max_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max_bytes {
        return Err(MediaError::too_large(max_bytes));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_under_the_root_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("media");
        fs::create_dir_all(root.join("with blank")).unwrap();
        fs::write(root.join("with blank/a+b.png"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::create_dir(dir.path().join("media-too")).unwrap();
        fs::write(dir.path().join("media-too/x"), "outside").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("with blank"), root.join("inner")).unwrap();
        let root = root.canonicalize().unwrap();
        let at = |path: &str| read(&format!("file://{}/{path}", root.display()), Some(&root), 6);
        for path in ["with%20blank/a+b.png", "inner/a%2Bb.png", "./with%20blank/../inner/a+b.png"] {
            assert_eq!(at(path).unwrap(), b"inside", "{path}");
        }
        let mut said: Vec<_> =
            ["../secret", "%2e%2e/secret", "link", "no-such", "with%20blank", "../media-too/x", "%00"]
                .map(|path| at(path).unwrap_err().message)
                .into();
        said.dedup();
        assert_eq!(said, ["the file: URL names no file under the directory of --allowed-local-media-path"]);
        assert_eq!(read("file:///etc/passwd", Some(&root), 99).unwrap_err().code, "image_url_not_allowed");
        assert_eq!(read("file:///etc/passwd", None, 99).unwrap_err().code, "image_url_not_allowed");
        assert_eq!(read("file://host/etc/passwd", Some(&root), 99).unwrap_err().code, "invalid_image_url");
        fs::write(root.join("large"), "1234567").unwrap();
        assert_eq!(at("large").unwrap_err().code, "image_too_large");
    }
}
