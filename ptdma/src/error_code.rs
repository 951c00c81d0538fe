//! Error codes that the engine leaves in the queue status register.

use core::fmt;

/// What the engine says of a failed descriptor: bits 5:0 of [`crate::regs::Register::Status`].
///
/// The raw value is always kept: codes that nobody has named round-trip, and there is no table
/// that a new code could overrun.
///
/// Source: the error-name tables of Linux `ptdma` and `ccp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ErrorCode(u8);

impl ErrorCode {
    /// Width of the field in the status register.
    pub const MASK: u32 = 0x3f;

    /// The code in a value of the queue status register; other bits are dropped.
    #[must_use]
    pub const fn from_status(status: u32) -> Self {
        Self((status & Self::MASK) as u8)
    }

    /// The raw code, 0..=63.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// The code's name, if it has one.
    #[must_use]
    pub const fn known(self) -> Option<KnownError> {
        KnownError::from_raw(self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(known) => write!(f, "ErrorCode({}, {known:?})", self.0),
            None => write!(f, "ErrorCode({}, unknown)", self.0),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(known) => write!(f, "error {}: {known}", self.0),
            None => write!(f, "error {}: not a known code", self.0),
        }
    }
}

/// The codes that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum KnownError {
    /// Engine number not implemented.
    IllegalEngine = 1,
    /// Function type not implemented.
    IllegalFunctionType = 3,
    /// Function mode not implemented.
    IllegalFunctionMode = 4,
    /// Function size not implemented.
    IllegalFunctionSize = 6,
    /// Reserved bits of the function field are set.
    ReservedFunctionBits = 8,
    /// Length is zero or not supported.
    IllegalBufferLength = 9,
    /// Virtual local-storage fault.
    VlsbFault = 10,
    /// Address not allowed.
    IllegalMemoryAddress = 11,
    /// Memory type not allowed.
    IllegalMemorySelect = 12,
    /// Context identifier not allowed.
    IllegalContextId = 13,
    /// Reserved by AMD.
    Reserved15 = 15,
    /// The command timeout of the engine ran out.
    CommandTimeout = 18,
    /// Slave error reading through input DMA 0.
    Input0SlaveError = 19,
    /// Decode error reading through input DMA 0.
    Input0DecodeError = 20,
    /// Reserved by AMD.
    Reserved21 = 21,
    /// Slave error reading through input DMA 1.
    Input1SlaveError = 22,
    /// Decode error reading through input DMA 1.
    Input1DecodeError = 23,
    /// Reserved by AMD.
    Reserved24 = 24,
    /// Reserved by AMD.
    Reserved27 = 27,
    /// Slave error writing through output DMA 0.
    Output0SlaveError = 38,
    /// Decode error writing through output DMA 0.
    Output0DecodeError = 39,
    /// Reserved by AMD.
    Reserved40 = 40,
    /// Slave error writing through output DMA 1.
    Output1SlaveError = 41,
    /// Decode error writing through output DMA 1.
    Output1DecodeError = 42,
    /// Parity error in the local storage block.
    LsbParityError = 43,
}

impl KnownError {
    /// All named codes, ascending.
    pub const ALL: [Self; 25] = [
        Self::IllegalEngine,
        Self::IllegalFunctionType,
        Self::IllegalFunctionMode,
        Self::IllegalFunctionSize,
        Self::ReservedFunctionBits,
        Self::IllegalBufferLength,
        Self::VlsbFault,
        Self::IllegalMemoryAddress,
        Self::IllegalMemorySelect,
        Self::IllegalContextId,
        Self::Reserved15,
        Self::CommandTimeout,
        Self::Input0SlaveError,
        Self::Input0DecodeError,
        Self::Reserved21,
        Self::Input1SlaveError,
        Self::Input1DecodeError,
        Self::Reserved24,
        Self::Reserved27,
        Self::Output0SlaveError,
        Self::Output0DecodeError,
        Self::Reserved40,
        Self::Output1SlaveError,
        Self::Output1DecodeError,
        Self::LsbParityError,
    ];

    /// The named code with this raw value.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::IllegalEngine,
            3 => Self::IllegalFunctionType,
            4 => Self::IllegalFunctionMode,
            6 => Self::IllegalFunctionSize,
            8 => Self::ReservedFunctionBits,
            9 => Self::IllegalBufferLength,
            10 => Self::VlsbFault,
            11 => Self::IllegalMemoryAddress,
            12 => Self::IllegalMemorySelect,
            13 => Self::IllegalContextId,
            15 => Self::Reserved15,
            18 => Self::CommandTimeout,
            19 => Self::Input0SlaveError,
            20 => Self::Input0DecodeError,
            21 => Self::Reserved21,
            22 => Self::Input1SlaveError,
            23 => Self::Input1DecodeError,
            24 => Self::Reserved24,
            27 => Self::Reserved27,
            38 => Self::Output0SlaveError,
            39 => Self::Output0DecodeError,
            40 => Self::Reserved40,
            41 => Self::Output1SlaveError,
            42 => Self::Output1DecodeError,
            43 => Self::LsbParityError,
            _ => return None,
        })
    }

    /// The raw value.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        ErrorCode(self as u8)
    }
}

impl fmt::Display for KnownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IllegalEngine => "engine number not implemented",
            Self::IllegalFunctionType => "function type not implemented",
            Self::IllegalFunctionMode => "function mode not implemented",
            Self::IllegalFunctionSize => "function size not implemented",
            Self::ReservedFunctionBits => "reserved bits of the function field are set",
            Self::IllegalBufferLength => "length is zero or not supported",
            Self::VlsbFault => "virtual local-storage fault",
            Self::IllegalMemoryAddress => "address not allowed",
            Self::IllegalMemorySelect => "memory type not allowed",
            Self::IllegalContextId => "context identifier not allowed",
            Self::Reserved15 => "reserved by AMD",
            Self::CommandTimeout => "the command timeout of the engine ran out",
            Self::Input0SlaveError => "slave error reading through input DMA 0",
            Self::Input0DecodeError => "decode error reading through input DMA 0",
            Self::Reserved21 => "reserved by AMD",
            Self::Input1SlaveError => "slave error reading through input DMA 1",
            Self::Input1DecodeError => "decode error reading through input DMA 1",
            Self::Reserved24 => "reserved by AMD",
            Self::Reserved27 => "reserved by AMD",
            Self::Output0SlaveError => "slave error writing through output DMA 0",
            Self::Output0DecodeError => "decode error writing through output DMA 0",
            Self::Reserved40 => "reserved by AMD",
            Self::Output1SlaveError => "slave error writing through output DMA 1",
            Self::Output1DecodeError => "decode error writing through output DMA 1",
            Self::LsbParityError => "parity error in the local storage block",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_raw_code_round_trips() {
        for status in 0..=u32::from(u16::MAX) {
            let code = ErrorCode::from_status(status);
            assert_eq!(u32::from(code.raw()), status & 0x3f);
            if let Some(known) = code.known() {
                assert_eq!(known.code(), code);
            }
        }
        for known in KnownError::ALL {
            assert_eq!(known.code().known(), Some(known));
        }
        assert_eq!(ErrorCode::from_status(63).known(), None);
    }
}
