//! The kernels that the build embedded, and the choice of the one that a device can run.

use anyhow::{Result, bail};

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Text that the driver compiles for the device when it is loaded.
    Ptx,
    /// Machine code.
    Cubin,
}

/// One `cuda/<kernel>.cu`, compiled for one architecture.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// Name of the source file without `.cu`.
    pub kernel: &'static str,
    /// The compiler's name of the target, for example `sm_90a`.
    pub arch: &'a str,
    /// Text or machine code.
    pub kind: Kind,
    /// Compute capability that it was compiled for: the number before the point.
    pub major: u32,
    /// And after it.
    pub minor: u32,
    /// It uses instructions of that one architecture, so no other can run it, newer or not.
    pub exact: bool,
    /// The image as nvcc wrote it.
    pub bytes: &'a [u8],
}

static EMBEDDED: &[Image<'static>] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Every image of this binary; none if it was built without nvcc.
pub fn embedded() -> &'static [Image<'static>] {
    EMBEDDED
}

/// Version of the compiler that made the images, for example `13.0.88`.
pub fn nvcc_version() -> Option<&'static str> {
    Some(env!("OCELLI_NVCC_VERSION")).filter(|v| !v.is_empty())
}

impl<'a> Image<'a> {
    /// Whether a device of this compute capability can run it.
    ///
    /// PTX runs on anything later. Machine code runs within its major version, on the same minor or a later one. Code
    /// with architecture-specific instructions (`sm_90a`) runs on exactly that architecture.
    pub fn runs_on(&self, (major, minor): (u32, u32)) -> bool {
        match self.kind {
            _ if self.exact => (major, minor) == (self.major, self.minor),
            Kind::Ptx => (major, minor) >= (self.major, self.minor),
            Kind::Cubin => major == self.major && minor >= self.minor,
        }
    }

    /// Names of its kernels, sorted: what PTX declares as `.entry NAME`, and sections `.text.NAME` in machine code.
    pub fn entries(&self) -> Vec<&'a str> {
        let (mark, name_ends): (&[u8], fn(&u8) -> bool) = match self.kind {
            Kind::Ptx => (b".entry ", |b| !b.is_ascii_alphanumeric() && *b != b'_'),
            Kind::Cubin => (b"\0.text.", |b| *b == 0),
        };
        let mut names: Vec<&str> = Vec::new();
        let mut rest = self.bytes;
        while let Some(at) = rest.windows(mark.len()).position(|w| w == mark) {
            rest = &rest[at + mark.len()..];
            let name = &rest[..rest.iter().position(name_ends).unwrap_or(rest.len())];
            names.extend(std::str::from_utf8(name).ok());
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Whether `images` hold machine code of compute capability 9.0 with the instructions that no other has.
pub fn has_sm_90a(images: &[Image<'_>]) -> bool {
    images.iter().any(|i| i.kind == Kind::Cubin && i.exact && (i.major, i.minor) == (9, 0))
}

/// The best of `images` for `kernel` on a device: machine code before PTX, then the latest architecture.
///
/// # Errors
/// No image at all, no such kernel, or none that this compute capability can run; each with the remedy.
pub fn pick<'a, 'b>(images: &'b [Image<'a>], kernel: &str, capability: (u32, u32)) -> Result<&'b Image<'a>> {
    let of_kernel = || images.iter().filter(|i| i.kernel == kernel);
    let best = of_kernel().filter(|i| i.runs_on(capability)).max_by_key(|i| (i.kind, i.major, i.minor, i.exact));
    if let Some(image) = best {
        return Ok(image);
    }
    if images.is_empty() {
        bail!(
            "this binary has no CUDA kernels, because it was built without nvcc: run tools/install-nvcc and build again, \
             or use --device cpu"
        );
    }
    let archs: Vec<&str> = of_kernel().map(|i| i.arch).collect();
    if archs.is_empty() {
        let mut known: Vec<&str> = images.iter().map(|i| i.kernel).collect();
        known.dedup();
        bail!("no CUDA kernel is named `{kernel}`; this binary has {}", known.join(", "));
    }
    let (major, minor) = capability;
    let remedy = if capability < (8, 0) {
        "ocelli needs 8.0 or later (Ampere, 2020): use --device cpu".to_owned()
    } else {
        format!("build again with `sm_{major}{minor}` in OCELLI_CUDA_ARCHS, or use --device cpu")
    };
    bail!(
        "the GPU has compute capability {major}.{minor}, and `{kernel}` is compiled for {}: {remedy}",
        archs.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(arch: &'static str, kind: Kind, major: u32, minor: u32, exact: bool) -> Image<'static> {
        Image { kernel: "gemm", arch, kind, major, minor, exact, bytes: &[] }
    }

    const PTX_80: Image<'static> = image("compute_80", Kind::Ptx, 8, 0, false);
    const SM_90A: Image<'static> = image("sm_90a", Kind::Cubin, 9, 0, true);
    const DEFAULT: &[Image<'static>] = &[PTX_80, SM_90A];

    fn picked(images: &[Image<'_>], capability: (u32, u32)) -> String {
        pick(images, "gemm", capability).map_or_else(|e| e.to_string(), |i| i.arch.to_owned())
    }

    #[test]
    fn the_default_build_gives_hopper_machine_code_and_every_other_card_ptx() {
        for (capability, arch) in [
            ((8, 0), "compute_80"),
            ((8, 6), "compute_80"),
            ((8, 9), "compute_80"),
            ((9, 0), "sm_90a"),
            ((10, 0), "compute_80"),
            ((12, 1), "compute_80"),
        ] {
            assert_eq!(picked(DEFAULT, capability), arch, "{capability:?}");
        }
    }

    #[test]
    fn only_exact_machine_code_has_the_instructions_of_one_architecture() {
        assert!(has_sm_90a(DEFAULT));
        assert!(!has_sm_90a(&[PTX_80, image("sm_90", Kind::Cubin, 9, 0, false)]));
        assert!(!has_sm_90a(&[image("sm_100a", Kind::Cubin, 10, 0, true)]));
    }

    #[test]
    fn machine_code_stays_in_its_major_version_and_the_latest_that_fits_wins() {
        let images =
            [PTX_80, image("sm_80", Kind::Cubin, 8, 0, false), image("sm_86", Kind::Cubin, 8, 6, false), SM_90A];
        for (capability, arch) in
            [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_86"), ((9, 0), "sm_90a"), ((10, 0), "compute_80")]
        {
            assert_eq!(picked(&images, capability), arch, "{capability:?}");
        }
    }

    #[test]
    fn the_names_of_kernels_are_found_in_text_and_in_machine_code() {
        let ptx = Image { bytes: b"//\n.visible .entry b_f16(\n.weak .entry a_f16(\n\tcall .entry_", ..PTX_80 };
        assert_eq!(ptx.entries(), ["a_f16", "b_f16"]);
        let cubin = Image { bytes: b"\x7fELF\0.nv.info.a_f16\0.text.a_f16\0.rela.text.c\0", ..SM_90A };
        assert_eq!(cubin.entries(), ["a_f16"]);
    }

    #[test]
    fn what_cannot_run_is_named_with_the_remedy() {
        assert_eq!(
            picked(DEFAULT, (7, 5)),
            "the GPU has compute capability 7.5, and `gemm` is compiled for compute_80, sm_90a: \
             ocelli needs 8.0 or later (Ampere, 2020): use --device cpu"
        );
        assert_eq!(
            picked(&[SM_90A], (12, 0)),
            "the GPU has compute capability 12.0, and `gemm` is compiled for sm_90a: \
             build again with `sm_120` in OCELLI_CUDA_ARCHS, or use --device cpu"
        );
        assert!(picked(&[], (9, 0)).contains("tools/install-nvcc"));
        let unknown = pick(DEFAULT, "conv", (9, 0)).err().map(|e| e.to_string());
        assert_eq!(unknown.as_deref(), Some("no CUDA kernel is named `conv`; this binary has gemm"));
    }
}
