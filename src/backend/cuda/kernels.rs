//! Which images a device loads: those that the build embedded, unless somebody who writes or measures kernels wants others.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::folder::Folder;
use super::image::{self, Image};
use crate::kernel::GpuInfo;

/// Where the images of a device come from; by default the best that the build has for it.
#[derive(Clone, Debug, Default)]
pub struct Kernels {
    /// Stand in front of the embedded ones of the same kernels.
    folder: Option<Arc<Folder>>,
    /// Of those that are embedded, no others.
    arch: Option<&'static str>,
}

impl From<Arc<Folder>> for Kernels {
    fn from(folder: Arc<Folder>) -> Kernels {
        Kernels { folder: Some(folder), arch: None }
    }
}

impl Kernels {
    /// Those of the folder `dir` in front, and of the embedded ones those for `arch` alone: `compute_80` is the PTX that any
    /// later GPU can compile.
    ///
    /// # Errors
    /// Those of [`Folder::read`], or a build without code for `arch`.
    pub fn of(dir: Option<&Path>, arch: Option<&str>) -> Result<Kernels> {
        let folder = dir.map(Folder::read).transpose()?.map(Arc::new);
        let arch = arch.map(|arch| embedded_arch(image::embedded(), arch)).transpose()?;
        Ok(Kernels { folder, arch })
    }

    /// Whether a device of this compute capability runs code of sm_90a.
    pub(super) fn sm_90a(&self, capability: (u32, u32)) -> bool {
        image::has_sm_90a(&self.embedded()) && capability == (9, 0)
    }

    /// The image of `cuda/<kernel>.cu` for a device.
    ///
    /// # Errors
    /// None suits.
    pub(super) fn pick(&self, kernel: &str, gpu: &GpuInfo) -> Result<Image<'_>> {
        let other = self.folder.as_ref().map(|folder| folder.pick(kernel, gpu)).transpose()?.flatten();
        match other {
            Some(image) => Ok(image),
            None => Ok(*image::pick(&self.embedded(), kernel, gpu.compute_capability)?),
        }
    }

    fn embedded(&self) -> Vec<Image<'static>> {
        image::embedded().iter().copied().filter(|image| self.arch.is_none_or(|arch| image.arch == arch)).collect()
    }

    /// Whether they are what the build has for the device.
    pub fn are_own(&self) -> bool {
        self.folder.is_none() && self.arch.is_none()
    }

    /// What is not as the build has it, a sentence each.
    pub fn describe(&self) -> Vec<String> {
        let arch = self.arch.map(|arch| format!("the kernels for {arch}, whatever this GPU is (--kernel-arch)"));
        self.folder.iter().map(|folder| folder.describe()).chain(arch).collect()
    }
}

/// The architecture of that name among those of `images`.
fn embedded_arch<'a>(images: &[Image<'a>], arch: &str) -> Result<&'a str> {
    let found = images.iter().find(|image| image.arch == arch);
    found.map(|image| image.arch).with_context(|| {
        let mut known: Vec<&str> = images.iter().map(|image| image.arch).collect();
        known.sort_unstable();
        known.dedup();
        let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
        format!("this build has no kernels for `{arch}` (--kernel-arch); it has {known}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::image::Kind;

    #[test]
    fn an_architecture_that_is_not_embedded_is_refused() {
        let image = |arch, kind| Image { kernel: "gemm", arch, kind, major: 8, minor: 0, exact: false, bytes: &[] };
        let images = [image("sm_90a", Kind::Cubin), image("compute_80", Kind::Ptx), image("compute_80", Kind::Ptx)];
        assert_eq!(embedded_arch(&images, "compute_80").unwrap(), "compute_80");
        let refused = |images: &[Image<'_>]| embedded_arch(images, "sm_80").unwrap_err().to_string();
        assert!(refused(&images).ends_with("no kernels for `sm_80` (--kernel-arch); it has compute_80, sm_90a"));
        assert!(refused(&[]).ends_with("it has none at all"));
    }

    #[test]
    fn without_code_for_it_hopper_is_like_any_later_gpu() {
        let Ok(ptx) = Kernels::of(None, Some("compute_80")) else { return };
        assert!(!ptx.sm_90a((9, 0)) && !ptx.are_own());
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 227 << 10, sm_90a: false };
        let image = ptx.pick("gemm", &gpu).unwrap();
        assert_eq!((image.arch, image.kind), ("compute_80", Kind::Ptx));
        assert!(ptx.describe()[0].starts_with("the kernels for compute_80,"));
    }
}
