//! When a channel that was taken out of service is tried again.

/// First wait after a channel came back and was taken out again, in nanoseconds: 100 ms.
const FIRST_DELAY_NS: u64 = 100_000_000;
/// Longest wait: a channel that fails every time costs one batch a minute.
const LAST_DELAY_NS: u64 = 60_000_000_000;

/// The history of one channel number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Comeback {
    /// A function is behind the number.
    pub(crate) present: bool,
    /// It will not be tried again.
    pub(crate) given_up: bool,
    /// It is being brought up just now.
    pub(crate) busy: bool,
    not_before_ns: u64,
    delay_ns: u64,
}

impl Comeback {
    /// A function was bound, and works.
    pub(crate) fn arrived(&mut self) {
        *self = Self {
            present: true,
            ..Self::default()
        };
    }

    /// Whether a channel that is out of service should be brought up now. If so, the caller does
    /// it; nobody else is told so until [`tried`](Self::tried).
    pub(crate) fn claim(&mut self, now_ns: u64) -> bool {
        if !self.present || self.given_up || self.busy || now_ns < self.not_before_ns {
            return false;
        }
        self.busy = true;
        true
    }

    /// It was tried. From one try to the next the wait doubles: the first comes at once, since
    /// the memory may have been to blame and not the channel.
    pub(crate) fn tried(&mut self, now_ns: u64, works: bool) {
        self.given_up = !works;
        self.wait_longer(now_ns);
    }

    /// It is not known whether its engine has stopped, so it could not be tried.
    pub(crate) fn doubted(&mut self, now_ns: u64) {
        self.wait_longer(now_ns);
    }

    fn wait_longer(&mut self, now_ns: u64) {
        self.busy = false;
        self.delay_ns = if self.delay_ns == 0 {
            FIRST_DELAY_NS
        } else {
            self.delay_ns.saturating_mul(2).min(LAST_DELAY_NS)
        };
        self.not_before_ns = now_ns.saturating_add(self.delay_ns);
    }

    /// The try could not be made yet.
    pub(crate) fn put_off(&mut self) {
        self.busy = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_try_is_at_once_and_later_ones_are_ever_rarer() {
        let mut comeback = Comeback::default();
        assert!(!comeback.claim(0), "nobody is there");
        comeback.arrived();
        let mut now = 5;
        let mut waits = Vec::new();
        for _ in 0..14 {
            let before = now;
            while !comeback.claim(now) {
                now += FIRST_DELAY_NS / 2;
            }
            assert!(!comeback.claim(now), "two would bring it up");
            comeback.tried(now, true);
            waits.push(now - before);
        }
        assert_eq!(waits[0], 0);
        assert_eq!(waits[1], FIRST_DELAY_NS);
        assert!(waits[2..].windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(*waits.last().unwrap(), LAST_DELAY_NS);
    }

    #[test]
    fn a_doubtful_one_is_asked_again_ever_more_rarely() {
        let mut comeback = Comeback::default();
        comeback.arrived();
        assert!(comeback.claim(0));
        comeback.doubted(0);
        assert!(!comeback.claim(FIRST_DELAY_NS - 1));
        assert!(comeback.claim(FIRST_DELAY_NS));
        comeback.doubted(FIRST_DELAY_NS);
        assert!(!comeback.claim(3 * FIRST_DELAY_NS - 1));
        assert!(comeback.claim(3 * FIRST_DELAY_NS));
    }

    #[test]
    fn what_does_not_come_up_is_given_up() {
        let mut comeback = Comeback::default();
        comeback.arrived();
        assert!(comeback.claim(0));
        comeback.put_off();
        assert!(comeback.claim(0));
        comeback.tried(0, false);
        assert!(!comeback.claim(u64::MAX));
        comeback.arrived();
        assert!(comeback.claim(0));
    }
}
