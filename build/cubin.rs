//! What a kernel needs, read from its machine code: cubins are ELF files.

use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolIndex};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// A thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Stack of a thread (arrays indexed at run time, spilled registers), in bytes.
    pub local_bytes: u32,
}

/// Attributes of `.nv.info` whose value is a symbol and a number (`cuobjdump -elf` prints their
/// names: EIATTR_REGCOUNT, EIATTR_FRAME_SIZE).
const REGISTER_COUNT: u8 = 0x2f;
const FRAME_SIZE: u8 = 0x11;
/// The form of such an attribute: a size follows, then so many bytes.
const SIZED: u8 = 0x04;

/// Shared memory that the system keeps for itself in each block from compute capability 9.0 on, and
/// that cubins count in.
const RESERVED_SHARED_BYTES: u32 = 1024;

/// For each symbol what its kernel needs; `arch` is 90 for compute capability 9.0.
pub fn resources(cubin: &[u8], symbols: &[String], arch: u32) -> Result<Vec<Resources>, String> {
    let file = object::read::elf::ElfFile64::<Endianness>::parse(cubin)
        .map_err(|e| format!("unreadable machine code: {e}"))?;
    let info = file.section_by_name(".nv.info").ok_or("machine code without .nv.info")?;
    let info = info.data().map_err(|e| e.to_string())?;
    let name_of = |index: u32| {
        let symbol = file.symbol_by_index(SymbolIndex(index as usize)).ok()?;
        symbol.name().ok()
    };
    let mut found = vec![Resources::default(); symbols.len()];
    let mut at = 0;
    while let Some(&[form, attribute, low, high]) = info.get(at..at + 4) {
        let size = usize::from(u16::from_le_bytes([low, high]));
        if form == SIZED {
            let number = |offset: usize| {
                let bytes = info.get(at + 4 + offset..at + 8 + offset)?;
                Some(u32::from_le_bytes(bytes.try_into().ok()?))
            };
            let kernel = number(0).and_then(name_of);
            let kernel = kernel.and_then(|name| symbols.iter().position(|s| s == name));
            match (attribute, kernel, number(4)) {
                (REGISTER_COUNT, Some(kernel), Some(value)) => found[kernel].registers = value,
                (FRAME_SIZE, Some(kernel), Some(value)) => found[kernel].local_bytes = value,
                _ => {}
            }
            at += size;
        }
        at += 4;
    }
    for (symbol, resources) in symbols.iter().zip(&mut found) {
        if resources.registers == 0 {
            return Err(format!("machine code without a register count for {symbol}"));
        }
        if let Some(shared) = file.section_by_name(&format!(".nv.shared.{symbol}")) {
            let reserved = if arch >= 90 { RESERVED_SHARED_BYTES } else { 0 };
            resources.shared_bytes = (shared.size() as u32).saturating_sub(reserved);
        }
    }
    Ok(found)
}
