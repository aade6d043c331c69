//! One kernel, compiled as a build would.

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, process};

use anyhow::{Context, Result, anyhow, bail};

use crate::backend::cuda::nvcc::{self, Arch};

/// nvcc, and what it is to do.
pub struct Compiler {
    nvcc: PathBuf,
    arch: Arch,
    source: PathBuf,
    dir: PathBuf,
    image: PathBuf,
}

/// What a compilation said and took.
pub struct Compiled {
    /// Registers, spills and shared memory of every kernel, and warnings.
    pub said: String,
    pub seconds: f64,
}

impl Compiler {
    /// For `source`, the kernel of `op`, into a folder.
    ///
    /// # Errors
    /// There is no nvcc.
    pub fn new(op: &str, arch: Arch, source: &Path, dir: &Path) -> Result<Compiler> {
        let nvcc = nvcc::find(Path::new(".")).map_err(|e| anyhow!(e))?;
        let nvcc = nvcc.context(
            "there is no nvcc in $CUDA_HOME/bin, $PATH or .tools/cuda/bin: tools/install-nvcc brings one, OCELLI_NVCC names \
             another",
        )?;
        let image = dir.join(format!("{op}.{}.{}", arch.name, arch.extension()));
        Ok(Compiler { nvcc, arch, source: source.to_owned(), dir: dir.to_owned(), image })
    }

    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// Where the image is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Compile it once more.
    ///
    /// # Errors
    /// nvcc cannot be run, or finds something wrong: then with its words.
    pub fn compile(&self) -> Result<Compiled> {
        let start = Instant::now();
        // Nothing of the version before may be taken for this one.
        let _ = fs::remove_file(&self.image);
        let mut command = nvcc::command(&self.nvcc, &self.arch, &self.source, &self.image);
        // A source that was copied elsewhere to be tried has the headers of the repository that this runs in.
        command.args(["-Icuda", "-Xptxas=-v"]);
        let ran = command.output().with_context(|| format!("running {}", self.nvcc.display()))?;
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        if !ran.status.success() {
            bail!("{} does not compile for {}\n{}", self.source.display(), self.arch.name, said.trim_end());
        }
        Ok(Compiled { said: summary(&said), seconds: start.elapsed().as_secs_f64() })
    }
}

/// A folder for what is compiled, gone with this value.
pub struct TemporaryDir(PathBuf);

impl TemporaryDir {
    /// A new one.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn new() -> Result<TemporaryDir> {
        let path = env::temp_dir().join(format!("ocelli-kernels-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(TemporaryDir(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        // What is left behind in a folder for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A line for every kernel out of what `ptxas -v` says of it in several, the same for several kernels once, and all else as it is.
fn summary(said: &str) -> String {
    let mut kernels: Vec<(String, Vec<String>)> = Vec::new();
    let (mut others, mut kernel, mut spills) = (String::new(), None, String::new());
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().map(str::to_owned);
        } else if line.contains("bytes stack frame") {
            spills = spilled(line);
        } else if let Some((_, used)) = line.split_once(": Used ")
            && let Some(name) = kernel.take()
        {
            let taken = used.split(", ").filter(|part| part.ends_with("registers") || part.ends_with("smem"));
            let taken = taken.collect::<Vec<_>>().join(", ") + &std::mem::take(&mut spills);
            match kernels.iter_mut().find(|(known, _)| *known == taken) {
                Some((_, names)) => names.push(name),
                None => kernels.push((taken, vec![name])),
            }
        } else if !line.contains("ptxas info") && !line.trim().is_empty() {
            others += &format!("{line}\n");
        }
    }
    let line = |(taken, names): &(String, Vec<String>)| format!("    {taken}: {}\n", names.join(" "));
    others + &kernels.iter().map(line).collect::<String>()
}

/// `, 8 bytes spilled` out of ptxas' line about the stack; nothing if nothing is.
fn spilled(line: &str) -> String {
    let bytes = |what: &str| -> u32 {
        let part = line.split(", ").find(|part| part.trim_end().ends_with(what));
        part.and_then(|part| part.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    match (bytes("spill stores"), bytes("spill loads")) {
        (0, 0) => String::new(),
        (stores, loads) => format!(", SPILLS {stores} bytes written and {loads} read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ptxas_says_of_a_kernel_is_one_line() {
        let said = "ptxas info    : 0 bytes gmem\n\
                    cuda/x.cu(3): warning #177-D: variable \"a\" was declared but never referenced\n\
                    ptxas info    : Compiling entry function 'x_f16' for 'sm_90a'\n\
                    ptxas info    : Function properties for x_f16\n    \
                        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                    ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem\n\
                    ptxas info    : Compile time = 1.0 ms\n\
                    ptxas info    : Compiling entry function 'x_bf16' for 'sm_90a'\n    \
                        16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                    ptxas info    : Used 255 registers\n";
        assert_eq!(
            summary(said),
            "cuda/x.cu(3): warning #177-D: variable \"a\" was declared but never referenced\n    \
             32 registers, 1024 bytes smem: x_f16\n    \
             255 registers, SPILLS 8 bytes written and 12 read: x_bf16\n"
        );
    }

    #[test]
    fn one_line_for_kernels_that_take_the_same() {
        let said = ["a", "b"].map(|name| {
            format!(
                "ptxas info    : Compiling entry function '{name}' for 'sm_90a'\nptxas info    : Used 8 registers\n"
            )
        });
        assert_eq!(summary(&said.concat()), "    8 registers: a b\n");
    }
}
