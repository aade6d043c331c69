//! What `build.rs` does on machines that differ: it is compiled alone and run with another environment, in a package of
//! its own, and with a compiler that is a shell script. So it needs no nvcc, and no cargo.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// A package with two kernels, and the build script's executable.
struct Machine {
    dir: TempDir,
}

/// How a run of the build script ended.
struct Ran {
    ok: bool,
    stdout: String,
    stderr: String,
    /// The table that the crate would include.
    table: String,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let machine = Machine { dir };
        machine.write("cuda/add.cu", "add");
        machine.write("cuda/mul.cu", "mul");
        machine.write("cuda/common.cuh", "");
        machine.write("out/.keep", "");
        machine.write("build.rs", "");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let compiled = Command::new(rustc)
            .args(["--edition", "2024", "-o"])
            .args([machine.path("build-script"), PathBuf::from("build.rs")])
            .output()
            .expect("rustc runs");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    /// A compiler that says its version, writes its arguments into the output, notes that it ran, and fails on kernels
    /// whose text is `broken`.
    fn install_nvcc(&self, place: &str, version: &str) -> PathBuf {
        let script = format!(
            r#"#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release 1, V{version}"; exit 0; fi
for last; do :; done
echo "$last" >> "{log}"
if grep -q broken "$last"; then echo "$last(3): error: expected a ';'" >&2; exit 2; fi
if grep -q doubtful "$last"; then echo "$last(7): warning: variable never used" >&2; fi
while [ "$1" != -o ]; do args="$args $1"; shift; done
echo "$args" > "$2"
"#,
            log = self.path("compiled").display()
        );
        self.write(place, &script);
        fs::set_permissions(self.path(place), fs::Permissions::from_mode(0o755)).expect("an executable");
        self.path(place)
    }

    /// Make files look a minute old: clocks of file systems tick slowly, and the test does not.
    fn age(&self, names: &[&str]) {
        let minute_ago = SystemTime::now() - Duration::from_secs(60);
        for name in names {
            let file = fs::File::options().append(true).open(self.path(name)).expect("a file");
            file.set_modified(minute_ago).expect("a new date");
        }
    }

    /// The kernels that were compiled since the last call.
    fn compiled(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("compiled")).unwrap_or_default();
        let _ = fs::remove_file(self.path("compiled"));
        let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn run(&self, environment: &[(&str, &Path)]) -> Ran {
        let output = Command::new(self.path("build-script"))
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("CARGO_MANIFEST_DIR", self.dir.path())
            .env("OUT_DIR", self.path("out"))
            .env("CARGO_FEATURE_CUDA", "1")
            .env("NUM_JOBS", "3")
            .envs(environment.iter().copied())
            .output()
            .expect("the build script runs");
        Ran {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            table: fs::read_to_string(self.path("out/kernels.rs")).unwrap_or_default(),
        }
    }

    /// The version that the build script found, and hands to the crate.
    fn version(&self, environment: &[(&str, &Path)]) -> String {
        let ran = self.run(environment);
        let line = ran.stdout.lines().find_map(|l| l.strip_prefix("cargo::rustc-env=OCELLI_NVCC_VERSION="));
        line.unwrap_or_else(|| panic!("no version in {}{}", ran.stdout, ran.stderr)).to_owned()
    }
}

#[test]
fn without_a_compiler_the_table_is_empty_and_one_warning_says_how_to_get_it() {
    let machine = Machine::new();
    let ran = machine.run(&[]);
    assert!(ran.ok, "{}", ran.stderr);
    assert_eq!(ran.table, "&[]\n");
    let warnings: Vec<&str> = ran.stdout.lines().filter(|l| l.starts_with("cargo::warning=")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("CPU backend alone") && warnings[0].contains("tools/install-nvcc"), "{warnings:?}");
    assert_eq!(machine.version(&[]), "");

    let ran = machine.run(&[("OCELLI_REQUIRE_NVCC", Path::new("1"))]);
    assert!(!ran.ok);
    assert!(
        ran.stderr.starts_with("OCELLI_REQUIRE_NVCC is set and there is no nvcc. `tools/install-nvcc`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn every_kernel_is_compiled_for_every_architecture_and_embedded() {
    let machine = Machine::new();
    machine.install_nvcc(".tools/cuda/bin/nvcc", "13.0.88");
    let ran = machine.run(&[("OCELLI_REQUIRE_NVCC", Path::new("1"))]);
    assert!(ran.ok, "{}", ran.stderr);
    assert!(!ran.stdout.contains("cargo::warning"), "{}", ran.stdout);
    assert_eq!(machine.compiled(), ["cuda/add.cu", "cuda/add.cu", "cuda/mul.cu", "cuda/mul.cu"]);
    assert_eq!(
        ran.table,
        r#"&[
    Image { kernel: "add", arch: "compute_80", kind: Kind::Ptx, major: 8, minor: 0, exact: false, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/add.compute_80.ptx")) },
    Image { kernel: "add", arch: "sm_90a", kind: Kind::Cubin, major: 9, minor: 0, exact: true, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/add.sm_90a.cubin")) },
    Image { kernel: "mul", arch: "compute_80", kind: Kind::Ptx, major: 8, minor: 0, exact: false, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/mul.compute_80.ptx")) },
    Image { kernel: "mul", arch: "sm_90a", kind: Kind::Cubin, major: 9, minor: 0, exact: true, bytes: include_bytes!(concat!(env!("OUT_DIR"), "/mul.sm_90a.cubin")) },
]
"#
    );
    let arguments = |file: &str| fs::read_to_string(machine.path("out").join(file)).expect("an image");
    let flags = " -O3 -std=c++17 -lineinfo --generate-code=arch=";
    assert_eq!(arguments("add.compute_80.ptx"), format!("{flags}compute_80,code=compute_80 --ptx\n"));
    assert_eq!(arguments("mul.sm_90a.cubin"), format!("{flags}compute_90a,code=sm_90a --cubin\n"));
}

#[test]
fn the_list_of_architectures_can_be_replaced_and_a_bad_one_is_named() {
    let machine = Machine::new();
    machine.install_nvcc(".tools/cuda/bin/nvcc", "13.0.88");
    let ran = machine.run(&[("OCELLI_CUDA_ARCHS", Path::new("sm_89, compute_120"))]);
    assert!(ran.ok, "{}", ran.stderr);
    assert!(
        ran.table.contains(r#"arch: "sm_89", kind: Kind::Cubin, major: 8, minor: 9, exact: false"#),
        "{}",
        ran.table
    );
    assert!(ran.table.contains(r#"arch: "compute_120", kind: Kind::Ptx, major: 12, minor: 0"#), "{}", ran.table);
    for (list, bad) in [
        ("sm_90a,hopper", "`hopper` is not an architecture"),
        ("90", "`90` is not an architecture"),
        ("sm_75", "`sm_75` is not an architecture"),
        ("sm_9a", "`sm_9a` is not an architecture"),
        ("sm_+90", "`sm_+90` is not an architecture"),
        ("sm_90,", "`` is not an architecture"),
        ("sm_90,sm_90", "`sm_90` stands there twice"),
    ] {
        let ran = machine.run(&[("OCELLI_CUDA_ARCHS", Path::new(list))]);
        assert!(!ran.ok, "{list}");
        assert!(ran.stderr.starts_with(&format!("OCELLI_CUDA_ARCHS={list}: {bad}")), "{}", ran.stderr);
    }
}

#[test]
fn the_compiler_is_looked_for_in_the_order_that_the_documentation_gives() {
    let machine = Machine::new();
    machine.install_nvcc(".tools/cuda/bin/nvcc", "1.0.0");
    machine.install_nvcc("path/nvcc", "2.0.0");
    machine.install_nvcc("home/bin/nvcc", "3.0.0");
    let named = machine.install_nvcc("named", "4.0.0");
    let (path, home, empty) = (machine.path("path"), machine.path("home"), machine.path("nothing-here"));
    assert_eq!(machine.version(&[]), "1.0.0");
    let path = PathBuf::from(format!("{}:/usr/bin:/bin", path.display()));
    assert_eq!(machine.version(&[("PATH", &path)]), "2.0.0");
    assert_eq!(machine.version(&[("PATH", &path), ("CUDA_PATH", &home)]), "3.0.0");
    assert_eq!(machine.version(&[("PATH", &path), ("CUDA_HOME", &empty)]), "2.0.0", "a home without a compiler");
    assert_eq!(machine.version(&[("PATH", &path), ("CUDA_HOME", &home), ("OCELLI_NVCC", &named)]), "4.0.0");

    let ran = machine.run(&[("OCELLI_NVCC", &empty)]);
    assert!(!ran.ok, "a compiler that is named and missing is not replaced by another");
    assert!(ran.stderr.starts_with(&format!("OCELLI_NVCC={}: no such file", empty.display())), "{}", ran.stderr);
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_and_a_warning_is_shown() {
    let machine = Machine::new();
    machine.install_nvcc(".tools/cuda/bin/nvcc", "13.0.88");
    machine.write("cuda/mul.cu", "doubtful");
    for _ in 0..2 {
        let ran = machine.run(&[]);
        assert!(ran.ok, "{}", ran.stderr);
        let warning = "cargo::warning=cuda/mul.cu(7): warning: variable never used";
        assert_eq!(
            ran.stdout.lines().filter(|l| *l == warning).count(),
            2,
            "one for each architecture: {}",
            ran.stdout
        );
    }
    machine.write("cuda/mul.cu", "broken");
    let ran = machine.run(&[]);
    assert!(!ran.ok);
    for expected in [
        "the CUDA kernels do not compile with ",
        "cuda/mul.cu for compute_80:\ncuda/mul.cu(3): error: expected a ';'",
        "cuda/mul.cu for sm_90a:\n",
    ] {
        assert!(ran.stderr.contains(expected), "{expected:?} is not in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("cuda/add.cu for"), "{}", ran.stderr);
}

#[test]
fn only_what_changed_is_compiled_again() {
    let machine = Machine::new();
    let nvcc = machine.install_nvcc(".tools/cuda/bin/nvcc", "13.0.88");
    let both = ["cuda/add.cu", "cuda/add.cu", "cuda/mul.cu", "cuda/mul.cu"];
    machine.age(&[".tools/cuda/bin/nvcc", "cuda/add.cu", "cuda/mul.cu", "cuda/common.cuh", "build.rs"]);
    assert!(machine.run(&[]).ok);
    assert_eq!(machine.compiled(), both);
    assert!(machine.run(&[]).ok);
    assert!(machine.compiled().is_empty());
    machine.write("cuda/mul.cu", "changed");
    assert!(machine.run(&[]).ok);
    assert_eq!(machine.compiled(), both[2..]);
    machine.write("cuda/common.cuh", "changed");
    assert!(machine.run(&[]).ok);
    assert_eq!(machine.compiled(), both);
    let other = machine.path("other-nvcc");
    fs::copy(nvcc, &other).expect("a copy");
    machine.age(&["other-nvcc", "cuda/mul.cu", "cuda/common.cuh"]);
    assert!(machine.run(&[("OCELLI_NVCC", &other)]).ok);
    assert_eq!(machine.compiled(), both);
}

#[test]
fn without_the_feature_nothing_is_looked_for() {
    let machine = Machine::new();
    machine.install_nvcc(".tools/cuda/bin/nvcc", "13.0.88");
    let output = Command::new(machine.path("build-script"))
        .env_clear()
        .env("CARGO_MANIFEST_DIR", machine.dir.path())
        .env("OUT_DIR", machine.path("out"))
        .output()
        .expect("the build script runs");
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains("cargo::warning"));
    assert!(machine.compiled().is_empty());
    assert_eq!(fs::read_to_string(machine.path("out/kernels.rs")).expect("a table"), "&[]\n");
}
