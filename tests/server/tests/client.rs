//! The server against the client of the `vfio_user` crate, in place of QEMU.
#![forbid(unsafe_code)]

mod common;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::{
    BAR2, CONFIG, Guest, LIMIT, PAGE, RAM_AT, RAM_LEN, memfd, serve, signalled, sockets, until,
};
use ptdma::KnownError;
use ptdma::regs::{ALL_ONES, Register};
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind, ModelConfig};
use std::os::unix::fs::FileExt;
use vfio_user::Client;

const SRC: u64 = RAM_AT + 0x1_0000;
const DST: u64 = RAM_AT + 0x10_0000;

#[test]
fn copies_and_interrupts() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let event = guest.interrupt(1);
    let data: Vec<u8> = (0..200_000).map(|i| (i % 253) as u8).collect();
    guest.put(SRC, &data);
    guest.start(SRC + 1, DST + 3, 199_000);
    assert!(signalled(&event, LIMIT));
    assert_eq!(guest.read(Register::InterruptStatus) & 1, 1);
    assert_eq!(guest.finish(), 0);
    assert_eq!(guest.get(DST + 3, 199_000), data[1..199_001]);
    assert_eq!(guest.get(DST, 3), [0; 3]);
    assert_eq!(guest.get(DST + 199_003, 9), [0; 9]);
    // The re-raise rule, over the wire.
    guest.write(Register::InterruptEnable, 0);
    assert!(!signalled(&event, Duration::from_millis(20)));
    guest.write(Register::InterruptEnable, 1);
    assert!(signalled(&event, LIMIT));
    let counters = server.report().sum;
    assert_eq!((counters.descriptors, counters.bytes), (1, 199_000));
    assert_eq!(counters.interrupts, 2);
}

#[test]
fn sixteen_functions_at_once() {
    let (server, _dir) = serve(16, ModelConfig::default());
    let threads: Vec<_> = sockets(&server)
        .into_iter()
        .enumerate()
        .map(|(n, socket)| {
            std::thread::spawn(move || {
                let mut guest = Guest::new(&socket);
                let data = vec![n as u8 + 1; 8192];
                guest.put(SRC, &data);
                for round in 0..40 {
                    let dst = DST + round * 8192;
                    assert_eq!(guest.copy(SRC, dst, 8192), 0);
                    assert_eq!(guest.get(dst, 8192), data);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let report = server.report();
    assert_eq!(report.sum.descriptors, 16 * 40);
    assert!(report.devices.iter().all(|d| d.counters.bytes == 40 * 8192));
    until("clients to be gone", || {
        server
            .report()
            .devices
            .iter()
            .all(|d| !d.connected && d.maps == 0)
    });
}

#[test]
fn what_is_not_mapped_is_not_reached() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let input = KnownError::Input0DecodeError as u32;
    let output = KnownError::Output0DecodeError as u32;
    assert_eq!(guest.copy(RAM_AT - PAGE, DST, 64), input);
    assert_eq!(guest.copy(SRC, RAM_AT + RAM_LEN, 64), output);
    assert_eq!(guest.copy(SRC, RAM_AT + RAM_LEN - 32, 64), output);
    // Unmapped, and mapped elsewhere in the same file.
    guest.client.dma_unmap(RAM_AT + 0x20_0000, PAGE).unwrap();
    assert_eq!(guest.copy(SRC, RAM_AT + 0x20_0000, 64), output);
    assert_eq!(guest.copy(RAM_AT + 0x20_0fff, DST, 1), input);
    let fd = guest.ram.as_raw_fd();
    guest.client.dma_map(0x20_0000, 0x1000, PAGE, fd).unwrap();
    guest.put(RAM_AT + 0x20_0000, b"moved");
    assert_eq!(guest.copy(0x1000, DST, 5), 0);
    assert_eq!(guest.get(DST, 5), b"moved");
    assert_eq!(server.report().devices[0].maps, 3);
}

#[test]
fn a_refused_map_is_not_there() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let small = memfd(PAGE);
    // The client does not look at the error in the reply; the effect is what counts.
    let bad = [(0, 2 * PAGE), (PAGE, PAGE), (u64::MAX - 10, PAGE)];
    for (offset, len) in bad {
        guest
            .client
            .dma_map(offset, 0x1000, len, small.as_raw_fd())
            .unwrap();
        assert_eq!(
            guest.copy(0x1000, DST, 1),
            KnownError::Input0DecodeError as u32
        );
    }
    assert_eq!(server.report().devices[0].maps, 1);
}

#[test]
fn a_file_that_shrinks_is_a_device_error() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let extra = memfd(16 * PAGE);
    guest
        .client
        .dma_map(0, 0x1_0000_0000, 16 * PAGE, extra.as_raw_fd())
        .unwrap();
    assert_eq!(guest.copy(SRC, 0x1_0000_0000 + 8 * PAGE, 4096), 0);
    extra.set_len(2 * PAGE).unwrap();
    let code = guest.copy(SRC, 0x1_0000_0000 + 8 * PAGE, 4096);
    assert_eq!(code, KnownError::Output0SlaveError as u32);
    let code = guest.copy(0x1_0000_0000 + 8 * PAGE, DST, 4096);
    assert_eq!(code, KnownError::Input0SlaveError as u32);
    assert_eq!(guest.copy(SRC, 0x1_0000_0000, 4096), 0);
}

#[test]
fn without_bus_master_nothing_moves() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    guest.client.region_write(CONFIG, 4, &[0x02, 0]).unwrap();
    guest.start(SRC, DST, 64);
    assert_eq!(guest.finish(), KnownError::Input0DecodeError as u32);
}

/// The descriptor of a client that has gone is not executed in the memory of the next one, whether
/// the function could be reset meanwhile or not.
#[test]
fn nothing_of_a_lost_client_is_executed_later() {
    for (machine, gone) in [
        ("today", true),
        ("sibling,reset=absent", false),
        ("sibling,reset=absent", true),
        ("today,reset=lost", false),
    ] {
        let model = ModelConfig {
            forks: machine.parse().unwrap(),
            ..ModelConfig::default()
        };
        let (server, _dir) = serve(1, model);
        let function = &server.functions()[0];
        let mut first = Guest::new(&sockets(&server)[0]);
        let stall = FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: false,
        };
        function.model().inject(Fault::at(0, stall));
        first.put(SRC, &[0x77; 64]);
        first.start(SRC, DST, 64);
        let patience = Instant::now() + Duration::from_secs(10);
        while function.model().counters().faults == 0 {
            assert!(Instant::now() < patience, "the engine does not begin");
            std::thread::yield_now();
        }
        if gone {
            let all_ones = FaultKind::AllOnes { reads: None };
            function.model().inject(Fault::now(all_ones));
        }
        drop(first);
        until("end of the session", || !function.status().connected);
        let after = function.status();
        assert!(
            !after.bus_master && !after.programmed,
            "{machine}: {after:?}"
        );

        // The second client only maps its memory: it has its own bytes there.
        let mut client = vfio_user::Client::new(&sockets(&server)[0]).unwrap();
        let ram = memfd(RAM_LEN);
        ram.write_all_at(&[0x11; 64], SRC - RAM_AT).unwrap();
        client.dma_map(0, RAM_AT, RAM_LEN, ram.as_raw_fd()).unwrap();
        function.model().clear_faults();
        client.region_write(CONFIG, 4, &[0x06, 0]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let mut bytes = [0xff; 64];
        ram.read_exact_at(&mut bytes, DST - RAM_AT).unwrap();
        assert_eq!(bytes, [0; 64], "{machine}");
        assert_eq!(function.model().counters().descriptors, 0);
    }
}

#[test]
fn without_bus_master_an_engine_may_wait() {
    let model = ModelConfig {
        forks: "today,bus_master=holds".parse().unwrap(),
        ..ModelConfig::default()
    };
    let (server, _dir) = serve(1, model);
    let mut guest = Guest::new(&sockets(&server)[0]);
    guest.put(SRC, b"later");
    guest.client.region_write(CONFIG, 4, &[0x02, 0]).unwrap();
    guest.start(SRC, DST, 64);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.get(DST, 5), [0; 5]);
    assert!(!server.report().devices[0].bus_master);
    guest.client.region_write(CONFIG, 4, &[0x06, 0]).unwrap();
    assert_eq!(guest.finish(), 0);
    assert_eq!(guest.get(DST, 5), b"later");
}

#[test]
fn a_function_that_a_reset_takes_away_comes_back_with_the_machine() {
    let model = ModelConfig {
        forks: "today,reset=lost".parse().unwrap(),
        ..ModelConfig::default()
    };
    let (server, _dir) = serve(1, model);
    let mut guest = Guest::new(&sockets(&server)[0]);
    guest.client.region_write(CONFIG, 0x48, &[0, 0x80]).unwrap();
    assert_eq!(guest.read(Register::Control), u32::MAX);
    let mut id = [0; 4];
    guest.client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xff; 4]);
    assert!(!server.report().devices[0].answers);
    // As a client does when its whole machine is reset.
    guest.client.reset().unwrap();
    guest.bring_up();
    assert_eq!(guest.copy(SRC, DST, 64), 0);
}

#[test]
fn many_small_maps_are_one_memory() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let pages = 4096;
    let ram = memfd(pages * PAGE);
    // Even pages in order, odd pages in reverse: some continue each other, most do not.
    let file_page = |n: u64| if n.is_multiple_of(2) { n } else { pages - n };
    for n in 0..pages {
        let at = 0x100_0000_0000 + n * PAGE;
        guest
            .client
            .dma_map(file_page(n) * PAGE, at, PAGE, ram.as_raw_fd())
            .unwrap();
        ram.write_all_at(&n.to_le_bytes(), file_page(n) * PAGE + 8)
            .unwrap();
    }
    assert_eq!(server.report().devices[0].maps, pages as usize + 1);
    let len = RAM_LEN - (DST - RAM_AT);
    assert_eq!(guest.copy(0x100_0000_0000, DST, len as u32), 0);
    let seen = guest.get(DST, len as usize);
    for n in 0..len / PAGE {
        let at = (n * PAGE + 8) as usize;
        assert_eq!(seen[at..at + 8], n.to_le_bytes());
    }
    guest
        .client
        .dma_unmap(0x100_0000_0000, pages * PAGE)
        .unwrap();
    assert_eq!(server.report().devices[0].maps, 1);
}

#[test]
fn unmap_waits_for_the_copy_and_nothing_is_written_after_it() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let len = 256 << 20;
    let big = memfd(2 * len);
    big.write_all_at(&[1], 0).unwrap();
    guest
        .client
        .dma_map(0, 1 << 40, 2 * len, big.as_raw_fd())
        .unwrap();
    for _ in 0..5 {
        big.write_all_at(&[0], len).unwrap();
        guest.start(1 << 40, (1 << 40) + len, len as u32);
        let mut first = [0];
        until("first byte", || {
            big.read_exact_at(&mut first, len).unwrap();
            first == [1]
        });
        guest.client.dma_unmap((1 << 40) + len, len).unwrap();
        // Now it is ours: whatever we write stays.
        let marks: Vec<u64> = (0..len / (1 << 20)).map(|n| len + (n << 20)).collect();
        for at in &marks {
            big.write_all_at(&[0xa5], *at).unwrap();
        }
        let code = guest.finish();
        if code != 0 {
            assert_eq!(code, KnownError::Output0DecodeError as u32);
            guest.skip();
        }
        for at in &marks {
            let mut mark = [0];
            big.read_exact_at(&mut mark, *at).unwrap();
            assert_eq!(mark, [0xa5], "written after the unmap at {at:#x}");
        }
        guest
            .client
            .dma_map(len, (1 << 40) + len, len, big.as_raw_fd())
            .unwrap();
    }
}

#[test]
fn resets_bring_the_function_back() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut guest = Guest::new(&sockets(&server)[0]);
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: false,
    };
    let model = server.functions()[0].model();
    for by_config in [false, true] {
        model.inject(Fault::at(0, stall.clone()));
        guest.put(SRC, b"after the reset");
        let struck = model.counters().faults;
        guest.start(SRC, DST, 64);
        // An engine that is halted before it has fetched anything stands still at once.
        let patience = Instant::now() + Duration::from_secs(10);
        while model.counters().faults == struck {
            assert!(Instant::now() < patience, "the engine does not begin");
            std::thread::yield_now();
        }
        guest.write(Register::Control, 0);
        assert_eq!(
            guest.read(Register::Control) & 2,
            0,
            "a stalled engine cannot halt"
        );
        if by_config {
            // PCI Express capability at 0x40, device control at +8, bit 15.
            guest.client.region_write(CONFIG, 0x48, &[0, 0x80]).unwrap();
        } else {
            guest.client.reset().unwrap();
        }
        assert_eq!(guest.read(Register::Control), 2);
        let mut command = [0xff; 2];
        guest.client.region_read(CONFIG, 4, &mut command).unwrap();
        assert_eq!(command, [0, 0]);
        guest.bring_up();
        assert_eq!(guest.copy(SRC, DST, 64), 0);
        assert_eq!(guest.get(DST, 15), b"after the reset");
    }
    assert_eq!(server.report().sum.resets, 2);
}

#[test]
fn a_function_that_is_gone_reads_all_ones() {
    let (server, _dir) = serve(2, ModelConfig::default());
    let sockets = sockets(&server);
    let (mut gone, mut other) = (Guest::new(&sockets[0]), Guest::new(&sockets[1]));
    let model = server.functions()[0].model();
    let id = model.inject(Fault::now(FaultKind::AllOnes { reads: None }));
    assert_eq!(gone.read(Register::Head), ALL_ONES);
    let mut id_word = [0; 4];
    gone.client.region_read(CONFIG, 0, &mut id_word).unwrap();
    assert_eq!(id_word, [0xff; 4]);
    model.remove_fault(id);
    // Reads of the configuration space count among those that are not answered.
    let id = model.inject(Fault::now(FaultKind::AllOnes { reads: Some(2) }));
    for answers in [false, false, true] {
        gone.client.region_read(CONFIG, 0, &mut id_word).unwrap();
        assert_eq!(id_word != [0xff; 4], answers);
    }
    assert_eq!(other.copy(SRC, DST, 64), 0);
    model.remove_fault(id);
    assert_eq!(gone.copy(SRC, DST, 64), 0);
}

#[test]
fn clients_come_and_go() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let socket = &sockets(&server)[0];
    for round in 0..10 {
        let mut guest = Guest::new(socket);
        assert_eq!(guest.read(Register::InterruptEnable), 0, "a fresh function");
        let _event = guest.interrupt(3);
        if round % 2 == 0 {
            assert_eq!(guest.copy(SRC, DST, 64), 0);
        } else {
            // Gone in the middle of a copy.
            guest.start(SRC, DST, 1 << 20);
        }
    }
}

#[test]
fn descriptions_are_those_of_a_pci_device() {
    let (server, _dir) = serve(1, ModelConfig::default());
    let mut client = Client::new(&sockets(&server)[0]).unwrap();
    let sizes: Vec<u64> = (0..9).map(|n| client.region(n).unwrap().size).collect();
    assert_eq!(sizes, [0, 0, 0x1_0000, 0, 0, 0x1000, 0, 0x1000, 0]);
    let counts: Vec<u32> = (0..5)
        .map(|n| client.get_irq_info(n).unwrap().count)
        .collect();
    assert_eq!(counts, [0, 1, 1, 0, 0]);
    let mut version = [0; 4];
    client.region_read(BAR2, 0x10, &mut version).unwrap();
    assert_ne!(version, [0; 4]);
    client.shutdown().unwrap();
}
