//! Compiles every `cuda/*.cu` for every architecture and embeds the images in the crate.
//!
//! It looks for nvcc and never for a GPU: a build machine has none. Without nvcc the crate has the CPU backend alone,
//! and one cargo warning says so; a kernel that does not compile is an error with nvcc's own words.
//!
//! | variable | meaning |
//! |---|---|
//! | `OCELLI_NVCC` | the compiler to use; otherwise `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `$PATH`, `.tools/cuda/bin` |
//! | `OCELLI_CUDA_ARCHS` | what to compile for; otherwise `compute_80,sm_90a` |
//! | `OCELLI_REQUIRE_NVCC` | `1`: a missing compiler is an error |

// A build script speaks to cargo on its standard output and to the user on the other.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "src/backend/cuda/nvcc.rs"]
mod nvcc;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::SystemTime;

use nvcc::{Arch, Result, variable};

/// PTX that any later GPU can compile for itself, and machine code for the card that the kernels are tuned for.
const DEFAULT_ARCHS: &str = "compute_80,sm_90a";

/// The list in `OCELLI_CUDA_ARCHS`.
fn parse_archs(list: &str) -> Result<Vec<Arch>> {
    let mut archs: Vec<Arch> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let Some(arch) = Arch::parse(name) else {
            return Err(format!(
                "OCELLI_CUDA_ARCHS={list}: `{name}` is not an architecture; write a list such as {DEFAULT_ARCHS} \
                 (compute_NN is PTX, sm_NN machine code, NN >= 80; a final `a` ties it to that architecture)"
            ));
        };
        if archs.contains(&arch) {
            return Err(format!("OCELLI_CUDA_ARCHS={list}: `{name}` stands there twice"));
        }
        archs.push(arch);
    }
    Ok(archs)
}

/// `13.0.88` out of `nvcc --version`, which has it as `V13.0.88`.
fn nvcc_version(nvcc: &Path) -> Result<String> {
    let ran = Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    let mut words = said.split_whitespace().filter_map(|word| word.strip_prefix('V'));
    let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned);
    version.ok_or_else(|| format!("{} --version does not say which:\n{said}", nvcc.display()))
}

/// What every compilation shares.
struct Compiler {
    nvcc: PathBuf,
    version: String,
    root: PathBuf,
    out: PathBuf,
    /// Files that any kernel may depend on.
    shared: Vec<PathBuf>,
}

impl Compiler {
    /// Compile one kernel for one architecture, unless the image is newer than everything it is made from. What nvcc
    /// says on success is a warning of the kernel: it comes back, and lies beside the image for the next run.
    fn compile(&self, kernel: &str, arch: &Arch) -> Result<String> {
        let source = format!("cuda/{kernel}.cu");
        let image = self.out.join(format!("{kernel}.{}.{}", arch.name, arch.extension()));
        let log = image.with_extension("log");
        let heading = format!("{} {}\n", self.nvcc.display(), self.version);
        let modified = |file: &PathBuf| -> Option<SystemTime> { fs::metadata(file).ok()?.modified().ok() };
        let changed = self.shared.iter().chain([&self.root.join(&source)]).filter_map(modified).max();
        if modified(&log) > changed
            && let Some(said) = fs::read_to_string(&log).unwrap_or_default().strip_prefix(&heading)
        {
            return Ok(said.to_owned());
        }
        let mut command = nvcc::command(&self.nvcc, arch, source.as_ref(), &image);
        let ran = command.current_dir(&self.root).output().map_err(|e| format!("{}: {e}", self.nvcc.display()))?;
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).trim().to_owned();
        if !ran.status.success() {
            return Err(format!("{source} for {}:\n{said}", arch.name));
        }
        fs::write(&log, heading + &said).map_err(|e| format!("{}: {e}", log.display()))?;
        Ok(said)
    }

    /// Compile everything, with as many compilers at a time as cargo allows, and return what they said.
    fn compile_all(&self, kernels: &[String], archs: &[Arch]) -> Result<Vec<String>> {
        let jobs: Vec<(&String, &Arch)> = kernels.iter().flat_map(|k| archs.iter().map(move |a| (k, a))).collect();
        let workers = variable("NUM_JOBS").and_then(|n| n.parse().ok()).unwrap_or(1).clamp(1, jobs.len().max(1));
        let queue = Mutex::new(jobs.into_iter());
        // Not a `while let` on the lock itself: that would hold it while the compiler runs.
        let take = || queue.lock().ok().and_then(|mut jobs| jobs.next());
        let work = || {
            let mut said = Vec::new();
            while let Some((kernel, arch)) = take() {
                said.push(self.compile(kernel, arch));
            }
            said
        };
        let said: Vec<Result<String>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let panicked = |_| vec![Err("a thread of the build script panicked".to_owned())];
            threads.into_iter().flat_map(|t| t.join().unwrap_or_else(panicked)).collect()
        });
        let errors: Vec<&str> = said.iter().filter_map(|s| s.as_ref().err()).map(String::as_str).collect();
        if !errors.is_empty() {
            let nvcc = self.nvcc.display();
            return Err(format!("the CUDA kernels do not compile with {nvcc}\n\n{}", errors.join("\n\n")));
        }
        said.into_iter().collect()
    }
}

/// The files of `dir` that end in `.extension`, sorted.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    Ok(files)
}

/// The source text of the table that `src/backend/cuda/image.rs` includes.
fn table(kernels: &[String], archs: &[Arch]) -> String {
    let mut text = String::from("&[\n");
    for kernel in kernels {
        for arch @ Arch { name, major, minor, exact, .. } in archs {
            let kind = if arch.ptx { "Ptx" } else { "Cubin" };
            let file = format!("/{kernel}.{name}.{}", arch.extension());
            let _ = writeln!(
                text,
                "    Image {{ kernel: {kernel:?}, arch: {name:?}, kind: Kind::{kind}, major: {major}, minor: {minor}, \
                 exact: {exact}, bytes: include_bytes!(concat!(env!(\"OUT_DIR\"), {file:?})) }},"
            );
        }
    }
    text + "]\n"
}

fn run() -> Result<()> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/backend/cuda/nvcc.rs");
    println!("cargo::rerun-if-changed=cuda");
    for name in ["OCELLI_NVCC", "OCELLI_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let wanted = variable("CARGO_FEATURE_CUDA").is_some();
    let archs = parse_archs(variable("OCELLI_CUDA_ARCHS").as_deref().unwrap_or(DEFAULT_ARCHS))?;
    let nvcc = if wanted { nvcc::find(&root)? } else { None };
    let (mut images, mut version) = (String::from("&[]\n"), String::new());
    if let Some(nvcc) = nvcc {
        println!("cargo::rerun-if-changed={}", nvcc.display());
        version = nvcc_version(&nvcc)?;
        let cuda = root.join("cuda");
        let stem = |file: &PathBuf| file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let kernels: Vec<String> = files(&cuda, "cu")?.iter().filter_map(stem).collect();
        let shared = [files(&cuda, "cuh")?, vec![root.join("build.rs"), nvcc.clone()]].concat();
        let compiler = Compiler { nvcc, version: version.clone(), root, out: out.clone(), shared };
        for line in compiler.compile_all(&kernels, &archs)?.iter().flat_map(|said| said.lines()) {
            println!("cargo::warning={line}");
        }
        images = table(&kernels, &archs);
    } else if wanted {
        let remedy = "`tools/install-nvcc` brings one (no GPU needed); OCELLI_NVCC or CUDA_HOME name another";
        // Watched only here: with a compiler the answer does not depend on it, and no rebuild should.
        println!("cargo::rerun-if-env-changed=OCELLI_REQUIRE_NVCC");
        if variable("OCELLI_REQUIRE_NVCC").is_some_and(|v| v != "0") {
            return Err(format!("OCELLI_REQUIRE_NVCC is set and there is no nvcc. {remedy}"));
        }
        println!("cargo::warning=no nvcc: this build has the CPU backend alone, without CUDA kernels. {remedy}");
    }
    println!("cargo::rustc-env=OCELLI_NVCC_VERSION={version}");
    fs::write(out.join("kernels.rs"), images).map_err(|e| format!("{}/kernels.rs: {e}", out.display()))
}

fn main() -> ExitCode {
    let Err(message) = run() else { return ExitCode::SUCCESS };
    eprintln!("{message}");
    ExitCode::FAILURE
}
