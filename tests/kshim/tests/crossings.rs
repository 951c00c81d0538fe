//! How often the library of the module calls C, and what becomes of a round whose mappings fail.
#![allow(missing_docs)]

use batch_copy::CHUNK;
use ptdma_kshim::abi::{MAX_ROUND_FOLIOS, Outcome};
use ptdma_kshim::host::Calls;
use ptdma_kshim_tests::Machine;

/// Most calls of C for 512 base pages on 16 channels: for each channel one mapping, a lock taken
/// and released to submit, and again to retire. That is 80; the rest is the batch's own.
const MOST_CALLS: u64 = 99;

/// From the second round on, as in use: engines are set going by the first one.
#[test]
fn a_usual_round_calls_c_less_than_a_hundred_times() {
    let mut machine = Machine::new(16, MAX_ROUND_FOLIOS, true);
    for round in 0..3 {
        let _before = Calls::take();
        let ended = machine.checked_round();
        let calls = Calls::take();
        println!("round {round}: {calls}");
        assert_eq!(ended.rc, 0);
        assert_eq!(ended.result.by_dma, 512, "{:?}", ended.result);
        assert_eq!(ended.result.channels, 16, "{:?}", ended.result);
        assert_eq!(calls.of("map"), 16, "{calls}");
        assert!(calls.total() <= MOST_CALLS, "{calls}");
    }
}

/// One channel takes them all: 16 chunks.
#[test]
fn one_channel_is_mapped_for_by_the_chunk() {
    let mut machine = Machine::new(1, MAX_ROUND_FOLIOS, true);
    let _before = Calls::take();
    let ended = machine.checked_round();
    let calls = Calls::take();
    println!("{calls}");
    assert_eq!(ended.result.by_dma, 512, "{:?}", ended.result);
    assert_eq!(calls.of("map"), 16, "{calls}");
}

/// Whatever position in whatever chunk: the folio is left to the CPU, all others are copied.
#[test]
fn a_failed_mapping_is_its_folio_s_alone() {
    const FOLIOS: usize = 3 * CHUNK;
    for channels in [1, 3] {
        let mut machine = Machine::new(channels, FOLIOS, true);
        for position in 0..FOLIOS as u32 {
            for other in [position, position + 1, position + CHUNK as u32] {
                let refused = [position, other];
                machine.refuse(&refused);
                let ended = machine.checked_round();
                assert_eq!(ended.rc, 0);
                for index in 0..FOLIOS {
                    let expected = if refused.contains(&(index as u32)) {
                        Outcome::NotAttempted
                    } else {
                        Outcome::Dma
                    };
                    assert_eq!(
                        ended.outcomes[index], expected as u8,
                        "{channels} channels, {refused:?} are refused: folio {index}"
                    );
                }
            }
        }
    }
}

/// Mapped for a channel that stops, a folio is no other channel's, and is left to the CPU.
#[test]
fn what_was_mapped_for_a_channel_that_hangs_is_left_to_the_cpu() {
    const FOLIOS: usize = 128;
    for more in [0, 1, 31, 32, 40] {
        let mut machine = Machine::new(2, FOLIOS, true);
        machine.hang(0, more);
        let ended = machine.checked_round();
        assert_eq!(ended.rc, 0);
        assert_eq!(ended.result.unproven, 0, "{:?}", ended.result);
        let copied = (0..FOLIOS).filter(|index| ended.is_dma(*index)).count() as u64;
        assert!(copied >= 64 + more.min(64), "{copied}: {:?}", ended.result);
        assert!(copied < FOLIOS as u64, "{:?}", ended.result);
    }
}
