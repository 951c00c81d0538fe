//! One PTDMA function in its configuration space: what is read, and how it is proved quiet.
//!
//! Offsets and bits are those of the PCI and PCI Express base specifications.

use core::fmt;
use core::time::Duration;

use ptdma::regs::{BAR_INDEX, PCI_DEVICE_ID, PCI_VENDOR_ID, QueueControl};

/// Configuration space of one function.
///
/// A function that is gone reads as all ones; an implementation answers so where its own means
/// of access fail.
pub trait Config {
    /// Reads the 32 bits at `offset`, a multiple of 4.
    fn read(&mut self, offset: u16) -> u32;
    /// Writes the 32 bits at `offset`, a multiple of 4.
    fn write(&mut self, offset: u16, value: u32);
    /// Writes 16 bits at `offset`, a multiple of 2, and nothing beside them: the upper half of
    /// command and of device control is a status whose bits a write clears.
    fn write_half(&mut self, offset: u16, value: u16);
}

const IDENTITY: u16 = 0x00;
const COMMAND: u16 = 0x04;
const BARS: u16 = 0x10;
const BAR_COUNT: u16 = 6;
const CAPABILITIES: u16 = 0x34;

/// Command register: the function answers in memory space.
const MEMORY: u16 = 1 << 1;
/// Command register: the function may use the bus.
const BUS_MASTER: u16 = 1 << 2;
/// Command register: no interrupt by a wire.
const INTX_OFF: u16 = 1 << 10;
/// Status register, as the upper half of the command's word: there is a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;

/// Capability of PCI Express.
const EXPRESS: u8 = 0x10;
/// Capability of message-signalled interrupts with a table.
const MSIX: u8 = 0x11;
/// A list of capabilities has at most one for each 4 bytes from 0x40 to 0xff.
const MAX_CAPABILITIES: usize = 48;

/// Device capabilities: the function can be reset by itself.
const CAN_RESET: u32 = 1 << 28;
/// Device control: reset the function.
const RESET: u16 = 1 << 15;
/// Device status, as the upper half of device control's word: transactions are pending.
const PENDING: u32 = 1 << 21;

/// Message control, as the upper half of the capability's first word: MSI-X is on.
const MSIX_ON: u32 = 1 << 31;

/// What an engine at work changes in its control register.
const WALKING: QueueControl = QueueControl::RUN.union(QueueControl::HALT);

/// Time that the specification gives a function to come back from its reset.
const RESET_TIME: Duration = Duration::from_millis(100);
/// Steps of the wait for a function.
const STEP: Duration = Duration::from_millis(10);
/// One second: a completion may take 50 ms by default and up to 900 ms by the longest ranges of
/// the specification; a function may ask for as long again after its reset.
const STEPS: u32 = 100;

/// Whether a PTDMA function answers here.
pub fn is_ptdma(config: &mut impl Config) -> bool {
    config.read(IDENTITY) == u32::from(PCI_DEVICE_ID) << 16 | u32::from(PCI_VENDOR_ID)
}

/// Where a base-address register puts its memory on the bus; `None` if it is unset, in I/O space,
/// or no such register.
pub fn bar(config: &mut impl Config, index: u8) -> Option<u64> {
    let index = u16::from(index);
    if index >= BAR_COUNT {
        return None;
    }
    let low = config.read(BARS + 4 * index);
    if low == u32::MAX || low & 1 != 0 {
        return None;
    }
    let high = match low >> 1 & 3 {
        0 => 0,
        2 if index + 1 < BAR_COUNT => config.read(BARS + 4 * (index + 1)),
        _ => return None,
    };
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    (address != 0).then_some(address)
}

/// Where the registers of the engine are on the bus.
pub fn registers(config: &mut impl Config) -> Option<u64> {
    bar(config, BAR_INDEX)
}

/// Offset of a capability, if the function has it.
fn capability(config: &mut impl Config, id: u8) -> Option<u16> {
    if config.read(COMMAND) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = config.read(CAPABILITIES) as u8 & !3;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let word = config.read(u16::from(at));
        if word as u8 == id {
            return Some(u16::from(at));
        }
        at = (word >> 8) as u8 & !3;
    }
    None
}

/// Where the MSI-X table of a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    at: u16,
    /// The base-address register of the table.
    pub bar: u8,
    /// Where in its memory the table begins, in bytes.
    pub offset_bytes: u32,
    /// Vectors of the table.
    pub vectors: u16,
}

impl Msix {
    /// Finds it; `None` if the function has none.
    pub fn find(config: &mut impl Config) -> Option<Self> {
        let at = capability(config, MSIX)?;
        let table = config.read(at + 4);
        Some(Self {
            at,
            bar: (table & 7) as u8,
            offset_bytes: table & !7,
            vectors: (config.read(at) >> 16 & 0x7ff) as u16 + 1,
        })
    }

    /// Switches it on or off, with no vector masked by the function as a whole.
    pub fn enable(&self, config: &mut impl Config, on: bool) {
        config.write_half(self.at + 2, if on { (MSIX_ON >> 16) as u16 } else { 0 });
    }
}

/// What the function was like before it was used: put back at the end, and after a reset, which
/// clears all of it.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    command: u16,
    bars: [u32; BAR_COUNT as usize],
    device_control: Option<(u16, u16)>,
    msix: Option<(u16, u16)>,
}

impl Saved {
    /// Reads it.
    pub fn take(config: &mut impl Config) -> Self {
        let mut bars = [0; BAR_COUNT as usize];
        for (at, bar) in (BARS..).step_by(4).zip(&mut bars) {
            *bar = config.read(at);
        }
        let express = capability(config, EXPRESS);
        let msix = capability(config, MSIX);
        Self {
            command: config.read(COMMAND) as u16,
            bars,
            device_control: express.map(|at| (at + 8, config.read(at + 8) as u16 & !RESET)),
            msix: msix.map(|at| (at + 2, (config.read(at) >> 16) as u16)),
        }
    }

    /// Puts all of it back, bus mastering too: only for a function that was proved stopped.
    pub fn restore(&self, config: &mut impl Config) {
        self.restore_all_but_command(config);
        config.write_half(COMMAND, self.command);
    }

    fn restore_all_but_command(&self, config: &mut impl Config) {
        for (at, bar) in (BARS..).step_by(4).zip(self.bars) {
            config.write(at, bar);
        }
        for (at, value) in [self.device_control, self.msix].into_iter().flatten() {
            config.write_half(at, value);
        }
    }
}

/// Lets the engine reach memory and its registers be reached, with interrupts off: a polled
/// channel has its error interrupt enabled at the device, and nobody takes it here.
pub fn switch_on(config: &mut impl Config) {
    if let Some(msix) = Msix::find(config) {
        msix.enable(config, false);
    }
    let command = config.read(COMMAND) as u16;
    config.write_half(COMMAND, command | MEMORY | BUS_MASTER | INTX_OFF);
}

/// Lets the function use the bus, or not; false if it does not obey.
pub fn set_bus_master(config: &mut impl Config, on: bool) -> bool {
    let command = config.read(COMMAND) as u16;
    let wanted = if on {
        command | BUS_MASTER
    } else {
        command & !BUS_MASTER
    };
    config.write_half(COMMAND, wanted);
    config.read(COMMAND) as u16 & BUS_MASTER == wanted & BUS_MASTER
}

/// Why an engine could not be proved stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproved {
    /// The function reads all ones: it may answer again with its engine where it was.
    Gone,
    /// Bus mastering could not be switched off.
    StillMaster,
    /// Transactions were pending all the time.
    StillPending,
    /// The function cannot be reset. It cannot use the bus now; whoever lets it use the bus again
    /// lets its engine go on.
    OffTheBus,
    /// The function did not come back from its reset.
    NotBack,
    /// The function came back from its reset with its queue as it was.
    NotReset,
}

impl fmt::Display for Unproved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gone => "gone",
            Self::StillMaster => "stays bus master",
            Self::StillPending => "stays busy on the bus",
            Self::OffTheBus => "no reset; off the bus",
            Self::NotBack => "lost in its reset",
            Self::NotReset => "ignores its reset",
        })
    }
}

/// Takes the function off the bus, waits for what it has on it, and resets it. After `Ok` its
/// engine has forgotten its queue, and the function is as [`switch_on`] leaves it.
///
/// Being off the bus alone is no proof that outlives this program: an operating system that takes
/// the function on lets a waiting engine write. So only a reset is one.
///
/// `control` reads the engine's queue control register, `stall` waits.
///
/// # Errors
///
/// [`Unproved`]. The function stays off the bus, as far as it obeys.
pub fn reset<C: Config>(
    config: &mut C,
    saved: &Saved,
    mut control: impl FnMut() -> u32,
    mut stall: impl FnMut(Duration),
) -> Result<(), Unproved> {
    if !is_ptdma(config) {
        return Err(Unproved::Gone);
    }
    let before = QueueControl::from_bits_retain(control());
    let off = config.read(COMMAND) as u16 & !BUS_MASTER;
    config.write_half(COMMAND, off);
    if config.read(COMMAND) as u16 & BUS_MASTER != 0 {
        return Err(Unproved::StillMaster);
    }
    let Some(express) = capability(config, EXPRESS) else {
        return Err(Unproved::OffTheBus);
    };
    let mut waited = 0;
    while config.read(express + 8) & PENDING != 0 {
        if waited == STEPS {
            return Err(Unproved::StillPending);
        }
        waited += 1;
        stall(STEP);
    }
    if config.read(express + 4) & CAN_RESET == 0 {
        return Err(Unproved::OffTheBus);
    }
    let device_control = config.read(express + 8) as u16;
    config.write_half(express + 8, device_control | RESET);
    stall(RESET_TIME);
    let mut waited = 0;
    while !is_ptdma(config) {
        if waited == STEPS {
            return Err(Unproved::NotBack);
        }
        waited += 1;
        stall(STEP);
    }
    saved.restore_all_but_command(config);
    config.write_half(COMMAND, off | MEMORY);
    // A queue that was set up has its length and the upper half of its address here.
    let after = QueueControl::from_bits_retain(control());
    // One that was not, by an earlier reset for example, has nothing to forget.
    let queue = before.difference(WALKING);
    let forgot = queue.is_empty() || after.difference(QueueControl::HALT) != queue;
    if after.contains(QueueControl::RUN) || !forgot {
        config.write_half(COMMAND, off & !MEMORY);
        return Err(Unproved::NotReset);
    }
    switch_on(config);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function with a list of capabilities, and the parts of it that misbehave.
    struct Fake {
        words: [u32; 64],
        /// What a write of the command register keeps of its old value.
        stuck: u16,
        /// Reads of device status before nothing is pending any more.
        pending: u32,
        /// What the queue's control register holds.
        control: u32,
        resets: u32,
        reset_works: bool,
        comes_back: bool,
    }

    const CONTROL: u32 = 0x31;

    impl Fake {
        fn new() -> Self {
            let mut words = [0; 64];
            words[0] = 0x1498_1022;
            words[1] = HAS_CAPABILITIES | 6;
            words[6] = 0xfe00_0000;
            words[13] = 0x40;
            words[16] = 0x50 << 8 | u32::from(EXPRESS);
            words[17] = CAN_RESET;
            words[18] = 0x2810;
            words[20] = u32::from(MSIX);
            words[21] = 0x2005;
            Self {
                words,
                stuck: 0,
                pending: 0,
                control: CONTROL,
                resets: 0,
                reset_works: true,
                comes_back: true,
            }
        }

        fn reset(&mut self) -> Result<(), Unproved> {
            let saved = Saved::take(self);
            let cell = core::cell::RefCell::new(self);
            // The closure for the registers and the configuration are two views of one function.
            struct Shared<'a, 'b>(&'a core::cell::RefCell<&'b mut Fake>);
            impl Config for Shared<'_, '_> {
                fn read(&mut self, offset: u16) -> u32 {
                    self.0.borrow_mut().read(offset)
                }
                fn write(&mut self, offset: u16, value: u32) {
                    self.0.borrow_mut().write(offset, value);
                }
                fn write_half(&mut self, offset: u16, value: u16) {
                    self.0.borrow_mut().write_half(offset, value);
                }
            }
            super::reset(&mut Shared(&cell), &saved, || cell.borrow().control, |_| {})
        }

        fn command(&mut self) -> u16 {
            self.read(COMMAND) as u16
        }
    }

    impl Config for Fake {
        fn read(&mut self, offset: u16) -> u32 {
            let word = self.words[usize::from(offset / 4)];
            if offset == 0x48 && self.pending > 0 {
                self.pending -= 1;
                return word | PENDING;
            }
            word
        }
        fn write(&mut self, offset: u16, value: u32) {
            self.words[usize::from(offset / 4)] = value;
        }
        fn write_half(&mut self, offset: u16, value: u16) {
            let word = &mut self.words[usize::from(offset / 4)];
            let shift = u32::from(offset % 4) * 8;
            let mut value = value;
            if offset == COMMAND {
                value |= *word as u16 & self.stuck;
            }
            if offset == 0x48 && value & RESET != 0 {
                self.resets += 1;
                if self.reset_works {
                    self.control = 2;
                }
                let keep = *word;
                self.words[1] = HAS_CAPABILITIES;
                self.words[4..10].fill(0);
                self.words[18] = keep & 0xffff_0000;
                if !self.comes_back {
                    self.words.fill(u32::MAX);
                }
                return;
            }
            *word = *word & !(0xffff << shift) | u32::from(value) << shift;
        }
    }

    #[test]
    fn a_function_is_known_by_its_identity_and_registers() {
        let mut fake = Fake::new();
        assert!(is_ptdma(&mut fake));
        assert_eq!(registers(&mut fake), Some(0xfe00_0000));
        fake.words[6] = 0xfe00_000c;
        fake.words[7] = 0x12;
        assert_eq!(registers(&mut fake), Some(0x12_fe00_0000), "64 bits");
        for bad in [0, 1, 0xfe00_0002, u32::MAX] {
            fake.words[6] = bad;
            assert_eq!(registers(&mut fake), None, "{bad:#x}");
        }
        assert_eq!(bar(&mut fake, 6), None);
        fake.words[0] = u32::MAX;
        assert!(!is_ptdma(&mut fake));
    }

    #[test]
    fn a_function_that_stays_bus_master_is_told() {
        let mut fake = Fake::new();
        fake.words[1] = u32::from(BUS_MASTER | MEMORY);
        assert!(set_bus_master(&mut fake, false));
        assert_eq!(fake.command(), MEMORY);
        assert!(set_bus_master(&mut fake, true));
        fake.stuck = BUS_MASTER;
        assert!(!set_bus_master(&mut fake, false));
    }

    #[test]
    fn the_table_of_vectors_is_found_and_switched() {
        let mut fake = Fake::new();
        let msix = Msix::find(&mut fake).unwrap();
        assert_eq!((msix.bar, msix.offset_bytes, msix.vectors), (5, 0x2000, 1));
        msix.enable(&mut fake, true);
        assert_eq!(fake.words[20], MSIX_ON | u32::from(MSIX));
        msix.enable(&mut fake, false);
        assert_eq!(fake.words[20], u32::from(MSIX));
    }

    #[test]
    fn a_list_of_capabilities_that_bites_its_tail_ends() {
        let mut fake = Fake::new();
        fake.words[20] = 0x40 << 8;
        assert_eq!(Msix::find(&mut fake), None);
        fake.words[1] = 0;
        assert_eq!(capability(&mut fake, EXPRESS), None, "no list at all");
    }

    #[test]
    fn a_reset_is_a_proof_and_leaves_the_function_usable() {
        let mut fake = Fake::new();
        fake.pending = 3;
        assert_eq!(fake.reset(), Ok(()));
        assert_eq!((fake.resets, fake.pending), (1, 0));
        assert_eq!(fake.command(), MEMORY | BUS_MASTER | INTX_OFF);
        assert_eq!(registers(&mut fake), Some(0xfe00_0000));
        assert_eq!(fake.words[18], 0x2810, "device control");
        // Somebody else may ask for the same proof.
        assert_eq!(fake.reset(), Ok(()));
        assert_eq!(fake.resets, 2);
    }

    #[test]
    fn what_is_no_proof_is_said_and_the_function_stays_off_the_bus() {
        let expect = |why, change: fn(&mut Fake)| {
            let mut fake = Fake::new();
            change(&mut fake);
            assert_eq!(fake.reset(), Err(why));
            if !matches!(
                why,
                Unproved::Gone | Unproved::StillMaster | Unproved::NotBack
            ) {
                assert_eq!(fake.command() & BUS_MASTER, 0, "{why:?}");
            }
        };
        expect(Unproved::Gone, |fake| fake.words.fill(u32::MAX));
        expect(Unproved::StillMaster, |fake| fake.stuck = BUS_MASTER);
        expect(Unproved::StillPending, |fake| fake.pending = u32::MAX);
        expect(Unproved::OffTheBus, |fake| fake.words[17] = 0);
        expect(Unproved::OffTheBus, |fake| fake.words[16] = 0);
        expect(Unproved::NotBack, |fake| fake.comes_back = false);
        expect(Unproved::NotReset, |fake| fake.reset_works = false);
    }

    #[test]
    fn what_was_there_before_is_put_back() {
        let mut fake = Fake::new();
        fake.words[20] |= MSIX_ON;
        let before = fake.words;
        let saved = Saved::take(&mut fake);
        switch_on(&mut fake);
        assert_eq!(fake.command(), MEMORY | BUS_MASTER | INTX_OFF);
        assert_eq!(fake.words[20] & MSIX_ON, 0);
        saved.restore(&mut fake);
        assert_eq!(fake.words, before);
    }
}
