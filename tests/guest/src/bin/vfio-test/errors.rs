//! Each error that a program can provoke, and whether it says what to do.

use ptdma_vfio::{
    Access, CopyRange, Error, Function, Memory, Mover, PciAddress, Setup, Space, Waiting,
};

use crate::Failure;

/// Fails unless the error is there and its message has the words.
fn expect<T>(
    what: &str,
    result: Result<T, Error>,
    is: fn(&Error) -> bool,
    words: &str,
) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(format!("{what}: no error").into()),
        Err(error) if !is(&error) => Err(format!("{what}: another error: {error}").into()),
        Err(error) if !error.to_string().contains(words) => {
            Err(format!("{what}: does not say {words:?}: {error}").into())
        }
        Err(_) => Ok(()),
    }
}

pub(crate) fn run(words: &[&str]) -> Result<String, Failure> {
    match words {
        ["arguments", address] => arguments(address.parse()?),
        ["other-space", one, other] => other_space(one.parse()?, other.parse()?),
        ["not-taken", address] => not_taken(address.parse()?),
        ["in-use", address] => in_use(address.parse()?),
        ["no-iommu", address] => no_iommu(address.parse()?),
        ["no-permission", address] => no_permission(address.parse()?),
        ["memlock", address] => memlock(address.parse()?),
        _ => Err(format!("{words:?}?").into()),
    }
}

/// Bad arguments, on a function that vfio-pci has.
fn arguments(address: PciAddress) -> Result<String, Failure> {
    let space = Space::new()?;
    let page = || Memory::anonymous(4096);
    expect(
        "map without a function",
        space.map(page()?),
        |e| matches!(e, Error::NoFunctionYet),
        "open a function",
    )?;
    expect(
        "no such function",
        Function::open(&space, "0000:7f:1f.7".parse()?),
        |e| matches!(e, Error::NoSuchFunction(_)),
        "lspci -d 1022:1498",
    )?;
    expect(
        "no engine",
        Function::open(&space, "0000:00:00.0".parse()?),
        |e| matches!(e, Error::NotPtdma { .. }),
        "no PTDMA engine",
    )?;
    let mover = Mover::open_in(&space, &[address], Setup::default())?;
    let from = space.map_for(Memory::anonymous(8 * 4096)?, Access::Read)?;
    let to = space.map(Memory::anonymous(8 * 4096)?)?;
    let too_long = CopyRange::new(&from, 4096, &to, 0, 8 * 4096);
    expect(
        "behind the end",
        too_long,
        |e| matches!(e, Error::OutOfBounds { .. }),
        "do not lie in",
    )?;
    expect(
        "wraps around",
        CopyRange::new(&from, u64::MAX, &to, 0, 2),
        |e| matches!(e, Error::OutOfBounds { .. }),
        "do not lie in",
    )?;
    expect(
        "read-only destination",
        CopyRange::new(&to, 0, &from, 0, 1),
        |e| matches!(e, Error::ReadOnly),
        "Access::ReadWrite",
    )?;
    expect(
        "no bytes",
        CopyRange::new(&from, 0, &to, 0, 0),
        |e| matches!(e, Error::Empty { .. }),
        "leave it out",
    )?;
    let overlapping = [
        CopyRange::new(&from, 0, &to, 0, 4096)?,
        CopyRange::new(&from, 4096, &to, 4095, 4096)?,
    ];
    expect(
        "overlapping destinations",
        mover.copy(&overlapping, Waiting::Polled),
        |e| matches!(e, Error::BadList(_)),
        "overlaps folio",
    )?;
    let itself = [CopyRange::new(&to, 0, &to, 100, 4096)?];
    expect(
        "a range onto itself",
        mover.copy(&itself, Waiting::Polled),
        |e| matches!(e, Error::BadList(_)),
        "overlap",
    )?;
    expect(
        "part of a page",
        Memory::anonymous(1000),
        |e| matches!(e, Error::Unaligned { .. }),
        "whole pages",
    )?;
    expect(
        "no huge pages",
        Memory::huge(64 << 30),
        |e| matches!(e, Error::NoMemory { .. }),
        "nr_hugepages",
    )?;
    // A source that engines may only read is copied all the same, and a lone byte, too.
    from.write(4095, &[0x77])?;
    let copied = mover.copy(&[CopyRange::new(&from, 4095, &to, 3, 1)?], Waiting::Asleep)?;
    let mut byte = [0];
    to.read(3, &mut byte)?;
    if !copied.is_complete() || byte != [0x77] {
        return Err(format!("a sound range was not copied: {copied:?}").into());
    }
    Ok("each says what to do".into())
}

/// A range of another space than the engines', which has a function of its own.
fn other_space(one: PciAddress, other: PciAddress) -> Result<String, Failure> {
    let space = Space::new()?;
    let mover = Mover::open_in(&space, &[one], Setup::default())?;
    let near = space.map(Memory::anonymous(4096)?)?;
    let elsewhere = Space::new()?;
    let _function = Function::open(&elsewhere, other)?;
    let far = elsewhere.map(Memory::anonymous(4096)?)?;
    let list = [
        CopyRange::new(&near, 0, &near, 100, 100)?,
        CopyRange::new(&near, 0, &far, 200, 100)?,
    ];
    expect(
        "a range of another space",
        mover.copy(&list, Waiting::Polled),
        |e| matches!(e, Error::Unmapped { range: 1 }),
        "in the mover's own space",
    )?;
    Ok("refused".into())
}

/// A function that another process has.
fn in_use(address: PciAddress) -> Result<String, Failure> {
    let space = Space::new()?;
    expect(
        "held by another process",
        Function::open(&space, address),
        |e| matches!(e, Error::InUse(_)),
        "end the process",
    )?;
    expect(
        "given back while another process holds it",
        ptdma_vfio::give_back(address),
        |e| matches!(e, Error::InUse(_)),
        "end the process",
    )?;
    Ok("refused".into())
}

fn not_taken(address: PciAddress) -> Result<String, Failure> {
    expect(
        "another driver's",
        Function::open(&Space::new()?, address),
        |e| matches!(e, Error::NotTaken { .. }),
        "take it first",
    )?;
    Ok("refused".into())
}

fn no_iommu(address: PciAddress) -> Result<String, Failure> {
    expect(
        "take without an IOMMU",
        ptdma_vfio::take(address),
        |e| matches!(e, Error::NoIommu(_)),
        "intel_iommu=on",
    )?;
    Ok("refused".into())
}

/// For a user who owns nothing.
fn no_permission(address: PciAddress) -> Result<String, Failure> {
    expect(
        "open without rights",
        Space::new().and_then(|space| Function::open(&space, address)),
        |e| matches!(e, Error::NoPermission { .. }),
        "chown",
    )?;
    expect(
        "take without rights",
        ptdma_vfio::give_back(address),
        |e| matches!(e, Error::NoPermission { .. }),
        "run as root",
    )?;
    Ok("refused".into())
}

/// For a user who owns the group's file, and may lock 8 MiB, the kernel's default.
fn memlock(address: PciAddress) -> Result<String, Failure> {
    let space = Space::new()?;
    let mover = Mover::open_in(&space, &[address], Setup::default())?;
    let small = space.map(Memory::anonymous(1 << 20)?)?;
    expect(
        "over the limit",
        space.map(Memory::anonymous(16 << 20)?),
        |e| matches!(e, Error::MemoryLimit { .. }),
        "ulimit -l",
    )?;
    let copied = mover.copy(
        &[CopyRange::new(&small, 0, &small, 4096, 4096)?],
        Waiting::Asleep,
    )?;
    if !copied.is_complete() {
        return Err(format!("not copied within the limit: {copied:?}").into());
    }
    Ok("refused, and the rest works".into())
}
