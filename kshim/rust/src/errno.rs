//! The kernel's error numbers, as far as this library returns any.

use ptdma::BringUpError;

/// I/O error.
pub(crate) const EIO: i32 = 5;
/// Try again.
pub(crate) const EAGAIN: i32 = 11;
/// Device or resource busy.
pub(crate) const EBUSY: i32 = 16;
/// No such device.
pub(crate) const ENODEV: i32 = 19;
/// Invalid argument.
pub(crate) const EINVAL: i32 = 22;
/// Timed out.
pub(crate) const ETIMEDOUT: i32 = 110;

/// What the kernel calls a failed bring-up. `EBUSY` asks for a reset of the function.
pub(crate) fn of_bring_up(e: BringUpError) -> i32 {
    match e {
        BringUpError::DeviceGone => -ENODEV,
        BringUpError::StillRunning { .. } => -EBUSY,
        BringUpError::Ring(_) => -EINVAL,
        _ => -EIO,
    }
}
