//! NVIDIA's compiler: where it is, and how it is asked. The build script includes this file, too, so that what
//! `ocelli kernels watch` compiles is what a build embeds; it therefore knows nothing of the crate.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `-lineinfo` costs nothing at run time and lets a profiler show the source.
const FLAGS: [&str; 3] = ["-O3", "-std=c++17", "-lineinfo"];

/// What went wrong, in words.
pub type Result<T> = std::result::Result<T, String>;

/// One target of the compiler, for example `sm_90a`: real machine code, or with `compute_`, PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arch {
    /// As the compiler calls it.
    pub name: String,
    /// What follows the prefix: `90a`.
    pub number: String,
    /// Text instead of machine code.
    pub ptx: bool,
    /// Compute capability: the number before the point.
    pub major: u32,
    /// And after it.
    pub minor: u32,
    /// The `a` at the end: instructions of that one architecture, so it runs on no other.
    pub exact: bool,
}

impl Arch {
    /// `compute_NN` or `sm_NN`, with an `a` at the end or not; NN is 80 or more.
    pub fn parse(name: &str) -> Option<Arch> {
        let (ptx, rest) = match name.strip_prefix("compute_") {
            Some(rest) => (true, rest),
            None => (false, name.strip_prefix("sm_")?),
        };
        let (digits, exact) = match rest.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (rest, false),
        };
        let plain = matches!(digits.len(), 2 | 3) && digits.bytes().all(|b| b.is_ascii_digit());
        let value: u32 = digits.parse().ok().filter(|n| plain && *n >= 80)?;
        Some(Arch { name: name.to_owned(), number: rest.to_owned(), ptx, major: value / 10, minor: value % 10, exact })
    }

    /// Of a file that holds it.
    pub fn extension(&self) -> &'static str {
        if self.ptx { "ptx" } else { "cubin" }
    }
}

/// A variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

/// The compiler: what `OCELLI_NVCC` names, or else [`tool`].
///
/// # Errors
/// `OCELLI_NVCC` names no file.
pub fn find(root: &Path) -> Result<Option<PathBuf>> {
    if let Some(path) = variable("OCELLI_NVCC") {
        let path = PathBuf::from(path);
        let missing = || format!("OCELLI_NVCC={}: no such file; it names the compiler itself", path.display());
        return if path.is_file() { Ok(Some(path)) } else { Err(missing()) };
    }
    Ok(tool(root, "nvcc"))
}

/// A program of the CUDA toolkit, in `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `$PATH` or `.tools/cuda/bin` below `root`.
pub fn tool(root: &Path, name: &str) -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| Path::new(&home).join("bin"));
    let path: Vec<PathBuf> = env::var_os("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default();
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    homes.chain(path).chain([root.join(".tools/cuda/bin")]).map(|dir| dir.join(&name)).find(|file| file.is_file())
}

/// What compiles `source` for `arch` into `image`.
pub fn command(nvcc: &Path, arch: &Arch, source: &Path, image: &Path) -> Command {
    let mut command = Command::new(nvcc);
    command
        .args(FLAGS)
        .arg(format!("--generate-code=arch=compute_{},code={}", arch.number, arch.name))
        .arg(format!("--{}", arch.extension()))
        .arg("-o")
        .args([image, source]);
    command
}
