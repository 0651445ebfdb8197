//! What a kernel does, read from its PTX.

/// Instructions of tensor cores (PTX ISA, "Warp-level Matrix Instructions" and "Asynchronous
/// Warpgroup-level Matrix Instructions").
const MATRIX: [&str; 3] = ["mma.sync", "wmma.mma", "wgmma.mma_async"];

/// Matrix instructions in the body of a kernel, each counted once however often a loop runs it;
/// `None`: the text has no such kernel.
pub fn mma_instructions(ptx: &str, symbol: &str) -> Option<u32> {
    let start = ptx.find(&format!(".entry {symbol}("))? + ".entry ".len();
    let body = &ptx[start..];
    // Kernels and functions stand one after another.
    let end = [".entry ", ".func "].iter().filter_map(|next| body.find(next)).min();
    let body = &body[..end.unwrap_or(body.len())];
    let words = body.split([' ', '\t', '\n', ';', '{', '}']);
    let matrix = words.filter(|word| MATRIX.iter().any(|name| word.starts_with(name)));
    Some(matrix.count() as u32)
}
