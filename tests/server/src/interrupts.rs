//! Event descriptors of the client, signalled when the model sends a message.

use std::fs::File;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_DATA_BOOL,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
};

/// Number of interrupt indices that a PCI device has in vfio.
pub const NUM_INDICES: u32 = VFIO_PCI_NUM_IRQS;

/// Vectors of an interrupt index: one of MSI-X and one of MSI, as the hardware facts say that
/// Linux asks for; nothing else.
#[must_use]
pub fn vectors(index: u32) -> u32 {
    u32::from(index == VFIO_PCI_MSIX_IRQ_INDEX || index == VFIO_PCI_MSI_IRQ_INDEX)
}

#[derive(Debug, Default)]
struct State {
    msix: Option<File>,
    msi: Option<File>,
    /// A message came while there was nobody to tell.
    pending: bool,
}

impl State {
    fn slot(&mut self, index: u32) -> Option<&mut Option<File>> {
        match index {
            VFIO_PCI_MSIX_IRQ_INDEX => Some(&mut self.msix),
            VFIO_PCI_MSI_IRQ_INDEX => Some(&mut self.msi),
            _ => None,
        }
    }
}

/// Where the messages of one function go.
#[derive(Debug, Default)]
pub struct Interrupts {
    state: Mutex<State>,
}

impl Interrupts {
    /// Nobody listens.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers a message: MSI-X if the client has set it up, else MSI. Kept until one of them
    /// is, if neither is (a PCI function keeps a pending bit).
    pub fn signal(&self) {
        let mut state = self.state.lock();
        match state.msix.as_ref().or(state.msi.as_ref()) {
            Some(event) => notify(event),
            None => state.pending = true,
        }
    }

    /// Forgets the client's descriptors and anything pending.
    pub fn clear(&self) {
        *self.state.lock() = State::default();
    }

    /// Forgets a pending message.
    pub fn clear_pending(&self) {
        self.state.lock().pending = false;
    }

    /// `DEVICE_SET_IRQS`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an index, vector, action or amount of data that does not exist.
    pub fn set(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: Vec<File>,
    ) -> Result<(), Errno> {
        let available = vectors(index);
        let in_range = start.checked_add(count).is_some_and(|end| end <= available);
        // Masking is not announced in the interrupt info, so triggers are the only action.
        if index >= NUM_INDICES
            || !in_range
            || flags & VFIO_IRQ_SET_ACTION_TYPE_MASK != VFIO_IRQ_SET_ACTION_TRIGGER
        {
            return Err(Errno::INVAL);
        }
        let mut state = self.state.lock();
        match flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
            VFIO_IRQ_SET_DATA_NONE if count == 0 => {
                if let Some(slot) = state.slot(index) {
                    *slot = None;
                }
                state.pending = false;
            }
            VFIO_IRQ_SET_DATA_NONE => {
                state.slot(index).and_then(|s| s.as_ref()).map(notify);
            }
            VFIO_IRQ_SET_DATA_BOOL => {
                let wanted = *data.first().ok_or(Errno::INVAL)?;
                if count == 1 && wanted != 0 {
                    state.slot(index).and_then(|s| s.as_ref()).map(notify);
                }
            }
            VFIO_IRQ_SET_DATA_EVENTFD => {
                if fds.len() > count as usize {
                    return Err(Errno::INVAL);
                }
                if count == 1 {
                    let event = fds.into_iter().next();
                    let pending = state.pending && event.is_some();
                    if pending {
                        event.as_ref().map(notify);
                        state.pending = false;
                    }
                    if let Some(slot) = state.slot(index) {
                        *slot = event;
                    }
                }
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }
}

/// Adds one to an event descriptor, without ever waiting: the client chose what it is, and one
/// that cannot take a write has a message pending anyway.
fn notify(event: &File) {
    let mut ready = [PollFd::new(event, PollFlags::OUT)];
    match rustix::event::poll(&mut ready, Some(&Timespec::default())) {
        Ok(1) if ready[0].revents().contains(PollFlags::OUT) => {
            if let Err(e) = rustix::io::write(event, &1u64.to_ne_bytes()) {
                log::warn!("interrupt descriptor: {e}");
            }
        }
        _ => log::debug!("interrupt descriptor is not writable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;

    const TRIGGER: u32 = VFIO_IRQ_SET_ACTION_TRIGGER;
    const MSIX: u32 = VFIO_PCI_MSIX_IRQ_INDEX;

    fn event() -> File {
        rustix::event::eventfd(0, EventfdFlags::NONBLOCK)
            .unwrap()
            .into()
    }

    fn count(event: &File) -> u64 {
        let mut value = [0; 8];
        match rustix::io::read(event, &mut value) {
            Ok(8) => u64::from_ne_bytes(value),
            _ => 0,
        }
    }

    fn assign(irqs: &Interrupts, index: u32, event: &File) {
        let fds = vec![event.try_clone().unwrap()];
        irqs.set(TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD, index, 0, 1, &[], fds)
            .unwrap();
    }

    #[test]
    fn msix_goes_before_msi_and_a_pending_message_is_kept() {
        let irqs = Interrupts::new();
        let (msi, msix) = (event(), event());
        irqs.signal();
        assign(&irqs, VFIO_PCI_MSI_IRQ_INDEX, &msi);
        assert_eq!(count(&msi), 1);
        irqs.signal();
        assert_eq!(count(&msi), 1);
        assign(&irqs, MSIX, &msix);
        irqs.signal();
        irqs.signal();
        assert_eq!((count(&msi), count(&msix)), (0, 2));
        let none = TRIGGER | VFIO_IRQ_SET_DATA_NONE;
        irqs.set(none, MSIX, 0, 1, &[], vec![]).unwrap();
        assert_eq!(count(&msix), 1);
        irqs.set(none, MSIX, 0, 0, &[], vec![]).unwrap();
        irqs.signal();
        assert_eq!((count(&msi), count(&msix)), (1, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        let irqs = Interrupts::new();
        let eventfd = VFIO_IRQ_SET_DATA_EVENTFD;
        let set = |flags, index, start, count, fds| irqs.set(flags, index, start, count, &[], fds);
        let bad = Err(Errno::INVAL);
        assert_eq!(set(TRIGGER | eventfd, 99, 0, 1, vec![event()]), bad);
        assert_eq!(set(TRIGGER | eventfd, MSIX, 1, 1, vec![event()]), bad);
        assert_eq!(set(TRIGGER | eventfd, MSIX, 0, u32::MAX, vec![]), bad);
        assert_eq!(set(TRIGGER | eventfd, MSIX, u32::MAX, 1, vec![]), bad);
        assert_eq!(set(eventfd, MSIX, 0, 1, vec![event()]), bad);
        assert_eq!(set(TRIGGER, MSIX, 0, 1, vec![]), bad);
        let two = vec![event(), event()];
        assert_eq!(set(TRIGGER | eventfd, MSIX, 0, 1, two), bad);
        assert_eq!(
            set(TRIGGER | VFIO_IRQ_SET_DATA_BOOL, MSIX, 0, 1, vec![]),
            bad
        );
    }

    #[test]
    fn a_full_descriptor_does_not_block() {
        let irqs = Interrupts::new();
        let full = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assign(&irqs, MSIX, &full.into());
        irqs.signal();
    }
}
