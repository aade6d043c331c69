//! `ocelli kernels` as far as it needs no GPU: the compiler is a shell script.

#![cfg(all(unix, feature = "cuda"))]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ocelli::backend::cuda::image;
use tempfile::TempDir;

/// A folder with a kernel, and a compiler that copies it and says what ptxas would, unless it holds the word `broken`.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk { dir: tempfile::tempdir().unwrap() };
        desk.save("gather.cu", "__global__ void gather_bf16();");
        desk.save("common.cuh", "");
        let nvcc = desk.path("nvcc");
        let script = "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in -o) out=$2;; *.cu) source=$1;; esac; shift; done\n\
                      if grep -q broken $source; then echo \"$source(1): error: expected a ;\" >&2; exit 2; fi\n\
                      case $out in *.ptx) (echo //; cat $source) > $out;; *) printf '\\177ELF' > $out;; esac\n\
                      echo \"ptxas info    : Compiling entry function 'gather_bf16' for 'sm_90a'\"\n\
                      echo 'ptxas info    : Function properties for gather_bf16'\n\
                      echo 'ptxas info    : Used 32 registers, used 1 barriers'\n";
        fs::write(&nvcc, script).unwrap();
        fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755)).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn save(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        command.arg("kernels").args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // Where there are GPUs, this test is still about what needs none.
        command.env("OCELLI_NVCC", self.path("nvcc")).env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    fn watch_once(&self, file: &Path) -> Output {
        self.command(&["watch", file.to_str().unwrap(), "--once"]).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_saved_kernel_is_compiled_and_its_registers_are_told() {
    let desk = Desk::new();
    let ran = desk.watch_once(&desk.path("gather.cu"));
    let out = text(&ran.stdout);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(out.starts_with("compiled for sm_90a in ") && out.contains("    32 registers: gather_bf16\n"), "{out}");
    assert!(text(&ran.stderr).starts_with("neither checked nor timed: "), "{}", text(&ran.stderr));
}

#[test]
fn a_kernel_that_does_not_compile_fails_with_the_compilers_words() {
    let desk = Desk::new();
    desk.save("gather.cu", "broken");
    let ran = desk.watch_once(&desk.path("gather.cu"));
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1));
    assert!(said.contains("gather.cu does not compile for sm_90a\n") && said.contains("error: expected a ;"), "{said}");
}

/// What the shell script stands for, where there is a compiler.
#[test]
fn a_real_compiler_tells_the_same() {
    let desk = Desk::new();
    let watch = |file: &Path| {
        let mut command = desk.command(&["watch", file.to_str().unwrap(), "--once", "--arch", "sm_90a"]);
        command.env_remove("OCELLI_NVCC").envs(std::env::var_os("CUDA_HOME").map(|home| ("CUDA_HOME", home)));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
    };
    let ran = watch(Path::new("cuda/gather.cu"));
    if text(&ran.stderr).contains("there is no nvcc") {
        println!("skipped: no nvcc");
        return;
    }
    let out = text(&ran.stdout);
    assert!(ran.status.success() && out.contains(" registers: gather_bf16 gather_f16\n"), "{out}{}", text(&ran.stderr));
    // A copy elsewhere has the same headers.
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/gather.cu")).unwrap();
    desk.save("gather.cu", &source.replace("pdl_wait();", "pdl_wait()"));
    fs::remove_file(desk.path("common.cuh")).unwrap();
    let ran = watch(&desk.path("gather.cu"));
    assert_eq!(ran.status.code(), Some(1));
    assert!(text(&ran.stderr).contains("error: expected a \";\""), "{}", text(&ran.stderr));
}

#[test]
fn what_is_no_kernel_of_an_op_is_refused() {
    let desk = Desk::new();
    desk.save("conv.cu", "");
    let refused = |name: &str| text(&desk.watch_once(&desk.path(name)).stderr);
    assert!(refused("conv.cu").contains("no op is named `conv`; there are "));
    assert!(refused("rope_kv.cu").contains("rope_kv.cu: no such .cu file"));
    assert!(refused("common.cuh").contains("common.cuh: no such .cu file"));
    let file = desk.path("gather.cu");
    let ran = desk.command(&["watch", file.to_str().unwrap(), "--once", "--arch", "sm_70"]).output().unwrap();
    assert!(text(&ran.stderr).contains("--arch sm_70: compute_NN is PTX"), "{}", text(&ran.stderr));
}

/// It goes on after an error, and when a header is saved.
#[test]
fn every_save_is_a_round() {
    let desk = Desk::new();
    let log = desk.path("log");
    let file = desk.path("gather.cu");
    let out = fs::File::create(&log).unwrap();
    let mut command = desk.command(&["watch", file.to_str().unwrap()]);
    let mut watch = command.stdout(out.try_clone().unwrap()).stderr(Stdio::from(out)).spawn().unwrap();
    let said = |what: &str, times: usize| {
        let begin = Instant::now();
        while fs::read_to_string(&log).unwrap().matches(what).count() < times {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    said("waiting for", 1);
    desk.save("gather.cu", "broken");
    said("expected a ;", 1);
    said("waiting for", 2);
    desk.save("gather.cu", "mended");
    said("waiting for", 3);
    desk.save("common.cuh", "// another");
    said("compiled for", 3);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn the_text_of_a_kernel_is_printed_or_it_is_said_what_there_is() {
    let desk = Desk::new();
    let whole = desk.command(&["dump", "gather", "--ptx"]).output().unwrap();
    if image::embedded().is_empty() {
        assert!(text(&whole.stderr).contains("the build has none: it was made without nvcc"));
        return;
    }
    let (whole, entry) = (text(&whole.stdout), ".visible .entry gather_bf16(");
    assert!(whole.contains(".version") && whole.contains(entry), "{}", &whole[..200]);
    let one = text(&desk.command(&["dump", "gather", "--ptx", "--symbol", "gather_bf16"]).output().unwrap().stdout);
    assert!(one.starts_with(entry) && one.ends_with("}\n") && one.matches(".entry").count() == 1, "{one}");
    let missing = desk.command(&["dump", "gather", "--ptx", "--symbol", "gather"]).output().unwrap();
    assert!(
        text(&missing.stderr).contains("gather has no kernel `gather`; it has gather_"),
        "{}",
        text(&missing.stderr)
    );
    let elsewhere = |form: &str, arch: &str| {
        let mut command = desk.command(&["dump", "gather", form, "--arch", arch]);
        command.current_dir(desk.dir.path()).output().unwrap()
    };
    let arch = elsewhere("--sass", "sm_80");
    assert!(
        text(&arch.stderr).contains("no machine code of gather for sm_80; the build has "),
        "{}",
        text(&arch.stderr)
    );
    fs::create_dir(desk.path("cuda")).unwrap();
    desk.save("cuda/gather.cu", ".entry gather_bf16");
    assert_eq!(text(&elsewhere("--ptx", "compute_90a").stdout), "//\n.entry gather_bf16");
    let mixed = elsewhere("--ptx", "sm_89");
    assert!(text(&mixed.stderr).contains("--arch sm_89: PTX is for compute_NN"), "{}", text(&mixed.stderr));
}

#[test]
fn kernels_for_an_architecture_are_for_a_gpu() {
    let ocelli = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_ocelli")).args(args).output().unwrap();
    let ran = ocelli(&["run", "--device", "cpu", "-p", "x", "--kernel-arch", "compute_80"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(text(&ran.stderr).contains("kernels for compute_80 are for a GPU"), "{}", text(&ran.stderr));
    let ran = ocelli(&["kernels", "list", "gather", "--kernel-arch", "sm_75"]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(text(&ran.stderr).contains("this build has no kernels for `sm_75`"), "{}", text(&ran.stderr));
}

#[test]
fn a_folder_of_kernels_is_for_a_gpu() {
    let desk = Desk::new();
    desk.save("gather.sm_90a.cubin", "\x7fELF");
    let dir = desk.dir.path().to_str().unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(["run", "--device", "cpu", "-p", "x", "--kernel-dir", dir])
        .output()
        .unwrap();
    assert!(text(&ran.stderr).contains("are for a GPU, and this runs on the host"), "{}", text(&ran.stderr));
}
