//! Images of a folder, instead of the embedded ones of the same kernels: a kernel is changed and run without building the
//! program again. Files are named as a build names them, `gemv.sm_90a.cubin` or `gemv.compute_80.ptx`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::image::{self, Image, Kind};
use super::nvcc::Arch;
use crate::kernel::GpuInfo;
use crate::ops::Op;

/// The images of a folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    kernel: &'static str,
    arch: Arch,
    bytes: Vec<u8>,
}

impl File {
    fn image(&self) -> Image<'_> {
        let Arch { name, ptx, major, minor, exact, .. } = &self.arch;
        Image {
            kernel: self.kernel,
            arch: name,
            kind: if *ptx { Kind::Ptx } else { Kind::Cubin },
            major: *major,
            minor: *minor,
            exact: *exact,
            bytes: &self.bytes,
        }
    }
}

impl Folder {
    /// Read every `.cubin` and `.ptx` of `path`.
    ///
    /// # Errors
    /// No such folder, none of them in it, or one that is named as no image is.
    pub fn read(path: &Path) -> Result<Folder> {
        let context = || format!("reading kernels from {} (--kernel-dir)", path.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(path).with_context(context)? {
            let file = entry.with_context(context)?.path();
            if file.extension().is_some_and(|extension| extension == "cubin" || extension == "ptx") {
                paths.push(file);
            }
        }
        paths.sort();
        let files = paths.iter().map(|file| read(file)).collect::<Result<Vec<_>>>().with_context(context)?;
        ensure!(!files.is_empty(), "{} holds no .cubin and no .ptx (--kernel-dir)", path.display());
        Ok(Folder { path: path.to_owned(), files })
    }

    /// Every image.
    pub fn images(&self) -> impl Iterator<Item = Image<'_>> {
        self.files.iter().map(File::image)
    }

    /// The image of `kernel` for a device; `None` if the folder has none of that kernel.
    ///
    /// # Errors
    /// It has some, and none that suits.
    pub fn pick(&self, kernel: &str, gpu: &GpuInfo) -> Result<Option<Image<'_>>> {
        let images: Vec<Image<'_>> = self.images().filter(|image| image.kernel == kernel).collect();
        if images.is_empty() {
            return Ok(None);
        }
        let place = || format!("in {} (--kernel-dir)", self.path.display());
        let picked = *image::pick(&images, kernel, gpu.compute_capability).with_context(place)?;
        // Ops choose launches that only code for this very architecture has.
        if gpu.sm_90a && !(picked.kind == Kind::Cubin && picked.exact) {
            let Image { arch, .. } = picked;
            let error =
                anyhow!("`{kernel}` is there for {arch}, and this build runs sm_90a code here: compile it for sm_90a");
            return Err(error.context(place()));
        }
        Ok(Some(picked))
    }

    /// What it replaces, in words, for example `not the program's own kernels: gemv (sm_90a) from /tmp/kernels`.
    pub fn describe(&self) -> String {
        let names: Vec<String> =
            self.files.iter().map(|file| format!("{} ({})", file.kernel, file.arch.name)).collect();
        format!("not the program's own kernels: {} from {}", names.join(", "), self.path.display())
    }
}

fn read(path: &Path) -> Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = name.split('.');
    let (Some(stem), Some(arch), Some(extension), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("{name}: a file is named KERNEL.ARCH.cubin or KERNEL.ARCH.ptx, for example gemv.sm_90a.cubin");
    };
    let known = || Op::NAMES.iter().copied().chain(image::embedded().iter().map(|image| image.kernel));
    let kernel = known().find(|known| *known == stem);
    let kernel =
        kernel.with_context(|| format!("{name}: no kernel is named `{stem}`; there are {}", Op::NAMES.join(", ")))?;
    let arch = Arch::parse(arch).with_context(|| {
        format!("{name}: `{arch}` is no architecture; compute_NN is PTX, sm_NN machine code, NN >= 80")
    })?;
    let expected = arch.extension();
    ensure!(extension == expected, "{name}: code for {} is in a file that ends in .{expected}", arch.name);
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let whole =
        if arch.ptx { bytes.starts_with(b"//") || bytes.starts_with(b".") } else { bytes.starts_with(b"\x7fELF") };
    ensure!(whole, "{name}: these {} bytes are no {} of nvcc", bytes.len(), if arch.ptx { "PTX" } else { "cubin" });
    Ok(File { kernel, arch, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: GpuInfo = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 227 << 10, sm_90a: true };

    fn folder(files: &[(&str, &str)]) -> Result<Folder> {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        Folder::read(dir.path())
    }

    fn refused(files: &[(&str, &str)]) -> String {
        format!("{:#}", folder(files).err().unwrap())
    }

    #[test]
    fn a_kernel_of_the_folder_is_picked_and_others_are_not_there() {
        let folder = folder(&[
            ("gemv.sm_90a.cubin", "\x7fELF new"),
            ("gemv.compute_80.ptx", "// old"),
            ("gemv.log", "what nvcc said"),
        ])
        .unwrap();
        let picked = folder.pick("gemv", &HOPPER).unwrap().unwrap();
        assert_eq!((picked.arch, picked.bytes), ("sm_90a", &b"\x7fELF new"[..]));
        assert!(folder.pick("gemm", &HOPPER).unwrap().is_none());
        let ampere = GpuInfo { compute_capability: (8, 6), sm_90a: false, ..HOPPER };
        assert_eq!(folder.pick("gemv", &ampere).unwrap().unwrap().arch, "compute_80");
        assert!(folder.describe().contains("kernels: gemv (compute_80), gemv (sm_90a) from "));
    }

    #[test]
    fn what_does_not_suit_the_device_is_refused_rather_than_passed_over() {
        let ptx = folder(&[("gemv.compute_80.ptx", "// old")]).unwrap();
        let error = format!("{:#}", ptx.pick("gemv", &HOPPER).err().unwrap());
        assert!(error.contains("`gemv` is there for compute_80") && error.contains("compile it for sm_90a"), "{error}");
        let blackwell = GpuInfo { compute_capability: (10, 0), sm_90a: false, ..HOPPER };
        let cubin = folder(&[("gemv.sm_90a.cubin", "\x7fELF")]).unwrap();
        let error = format!("{:#}", cubin.pick("gemv", &blackwell).err().unwrap());
        assert!(error.contains("`gemv` is compiled for sm_90a"), "{error}");
    }

    #[test]
    fn files_that_are_no_images_are_named() {
        assert!(refused(&[]).contains("holds no .cubin and no .ptx"));
        assert!(refused(&[("gemv.cubin", "\x7fELF")]).ends_with("for example gemv.sm_90a.cubin"));
        assert!(refused(&[("conv.sm_90a.cubin", "\x7fELF")]).contains("no kernel is named `conv`; there are "));
        assert!(refused(&[("gemv.sm_70.cubin", "\x7fELF")]).contains("`sm_70` is no architecture"));
        assert!(refused(&[("gemv.sm_90a.ptx", "//")]).contains("code for sm_90a is in a file that ends in .cubin"));
        assert!(refused(&[("gemv.sm_90a.cubin", "// text")]).contains("these 7 bytes are no cubin of nvcc"));
        assert!(
            format!("{:#}", Folder::read(Path::new("/nowhere")).err().unwrap()).contains("/nowhere (--kernel-dir)")
        );
    }
}
