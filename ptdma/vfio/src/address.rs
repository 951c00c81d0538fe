//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The address of a PCI function, as Linux writes it: `0000:21:00.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Devices of a bus: five bits of an address.
const MAX_DEVICE: u8 = 0x1f;
/// Functions of a device: three bits of an address.
const MAX_FUNCTION: u8 = 7;

impl FromStr for PciAddress {
    type Err = Error;

    /// Reads `domain:bus:device.function` or `bus:device.function`, in hexadecimal.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadAddress(text.to_owned());
        let (front, function) = text.trim().rsplit_once('.').ok_or_else(bad)?;
        let mut fields = front.rsplit(':');
        let device = fields.next().ok_or_else(bad)?;
        let bus = fields.next().ok_or_else(bad)?;
        let domain = fields.next().unwrap_or("0");
        if fields.next().is_some() {
            return Err(bad());
        }
        let number = |digits: &str, longest: usize| {
            let plain = digits.len() <= longest && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if plain {
                u32::from_str_radix(digits, 16).ok()
            } else {
                None
            }
        };
        let byte = |digits: &str| number(digits, 2).and_then(|value| u8::try_from(value).ok());
        let address = Self {
            // Domains of Linux have up to eight digits (those that the VMD driver makes up).
            domain: number(domain, 8).ok_or_else(bad)?,
            bus: byte(bus).ok_or_else(bad)?,
            device: byte(device).ok_or_else(bad)?,
            function: byte(function).ok_or_else(bad)?,
        };
        if address.device > MAX_DEVICE || address.function > MAX_FUNCTION {
            return Err(bad());
        }
        Ok(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() -> Result<(), Error> {
        for (text, full) in [
            ("0000:21:00.2", "0000:21:00.2"),
            ("21:1f.7", "0000:21:1f.7"),
            ("10000:E1:00.0\n", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>()?.to_string(), full);
        }
        Ok(())
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "21",
            "21:00",
            "0000:21:00.8",
            "0000:21:20.0",
            "0000:121:00.0",
            "x:0000:21:00.0",
            "0000:2g:00.0",
            "0000:+1:00.0",
            "0000::00.0",
            "0000:21:00.",
        ] {
            let result = text.parse::<PciAddress>();
            assert!(matches!(result, Err(Error::BadAddress(_))), "{text}");
        }
    }
}
