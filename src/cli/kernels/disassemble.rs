//! Instructions out of machine code, by nvdisasm of the CUDA toolkit. (cuobjdump shows them, too, and runs nvdisasm for it.)

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::compile::TemporaryDir;
use crate::backend::cuda::image::Image;
use crate::backend::cuda::nvcc;

/// The instructions of `image`, or of its kernel `symbol`.
///
/// # Errors
/// There is no tool for it, or the tool fails.
pub fn sass(image: &Image<'_>, symbol: Option<&str>) -> Result<String> {
    let tool = nvcc::tool(Path::new("."), "nvdisasm").context(
        "instructions are shown by nvdisasm of the CUDA toolkit, which is not in $CUDA_HOME/bin, $PATH or .tools/cuda/bin: \
         tools/install-nvcc brings it",
    )?;
    let dir = TemporaryDir::new()?;
    let file = dir.path().join(format!("{}.cubin", image.kernel));
    fs::write(&file, image.bytes).with_context(|| format!("writing {}", file.display()))?;
    let ran =
        Command::new(&tool).arg("-c").arg(&file).output().with_context(|| format!("running {}", tool.display()))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{} failed: {}", tool.display(), said.trim());
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    Ok(symbol.map_or_else(|| text.clone(), |symbol| function_of_sass(&text, symbol)))
}

/// The part of a listing that is about `symbol`.
fn function_of_sass(text: &str, symbol: &str) -> String {
    // Each section is ruled off.
    let begins = |line: &str| line.starts_with("//-----");
    let ours =
        |line: &str| begins(line) && line.split_whitespace().any(|word| word.strip_prefix(".text.") == Some(symbol));
    let lines = text.lines().skip_while(|line| !ours(line));
    let mut out = String::new();
    for (i, line) in lines.enumerate() {
        if i > 0 && begins(line) {
            break;
        }
        out += line;
        out.push('\n');
    }
    out
}

/// The text of kernel `symbol`, from its declaration to its closing brace.
pub fn function_of_ptx(text: &str, symbol: &str) -> String {
    let head = |line: &str| {
        line.split_once(".entry ").is_some_and(|(_, rest)| {
            rest.strip_prefix(symbol)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        })
    };
    let mut out = String::new();
    for line in text.lines().skip_while(|line| !head(line)) {
        out += line;
        out.push('\n');
        if line == "}" {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_function_is_cut_out_of_a_listing() {
        let nvdisasm = "head\n//------ .text.gemv_f16 ------\n a;\n//------ .text.gemv_bf16 ------\n b;\n c;\n//------ .nv ----\n d;\n";
        assert_eq!(function_of_sass(nvdisasm, "gemv_bf16"), "//------ .text.gemv_bf16 ------\n b;\n c;\n");
        let ptx = ".visible .entry gemv_bf16_wide(\n)\n{\n\tret;\n}\n.visible .entry gemv_bf16(\n)\n{\n\tadd;\n}\n\n.func x\n";
        assert_eq!(function_of_ptx(ptx, "gemv_bf16"), ".visible .entry gemv_bf16(\n)\n{\n\tadd;\n}\n");
    }
}
