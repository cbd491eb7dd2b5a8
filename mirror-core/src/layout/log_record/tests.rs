use super::*;

const SLOTS: u32 = 6433;
const EPOCH: u64 = 3;

/// A writer that keeps the rules, with the state it believes in.
struct Writer {
    ring: Vec<u8>,
    slots: Vec<Option<ExtentIndex>>,
    epoch: u64,
    next: u64,
    next_context: usize,
}

impl Writer {
    fn new() -> Self {
        Self {
            ring: void_ring(),
            slots: vec![None; SLOTS as usize],
            epoch: EPOCH,
            next: 1,
            next_context: 0,
        }
    }

    fn next_block(&mut self) -> Vec<u8> {
        let updates: Vec<_> = (0..LOG_UPDATES_MAX as u64)
            .map(|n| {
                let turn = self.next * LOG_UPDATES_MAX as u64 + n;
                let extent = (!turn.is_multiple_of(5)).then_some(ExtentIndex(turn as u32));
                ((turn * 37 % u64::from(SLOTS)) as u16, extent)
            })
            .collect();
        for (slot, extent) in &updates {
            self.slots[usize::from(*slot)] = *extent;
        }
        let first = self.next_context;
        self.next_context = (first + LOG_CONTEXT) % self.slots.len();
        let context = self.slots.iter().cycle().skip(first).take(LOG_CONTEXT);
        LogRecord {
            log_epoch: self.epoch,
            number: self.next,
            updates,
            context_first: first as u16,
            context: context.copied().collect(),
        }
        .encode()
    }

    fn write(&mut self, count: u64) {
        for _ in 0..count {
            let block = self.next_block();
            self.place(self.next, &block);
            self.next += 1;
        }
    }

    fn place(&mut self, number: u64, block: &[u8]) {
        let at = (number % LOG_BLOCKS) as usize * BLOCK;
        self.ring[at..at + BLOCK].copy_from_slice(block);
    }

    /// A stop in the middle of the next transaction: the first `sectors` of it reached the disk.
    fn tear(&mut self, sectors: usize) {
        let before = self.slots.clone();
        let block = self.next_block();
        self.slots = before;
        let at = (self.next % LOG_BLOCKS) as usize * BLOCK;
        self.ring[at..at + sectors * 512].copy_from_slice(&block[..sectors * 512]);
    }

    fn spoil(&mut self, number: u64) {
        let at = (number % LOG_BLOCKS) as usize * BLOCK;
        self.ring[at + 700] ^= 0x40;
    }

    fn recover(&self) -> LogRecovery {
        recover(&self.ring, self.epoch, SLOTS)
    }

    fn check(&self, trust: Trust) {
        let log = self.recover();
        assert_eq!(log.trust, trust, "before transaction {}", self.next);
        assert_eq!(log.next_number, self.next);
        assert!(log.slots == self.slots, "before transaction {}", self.next);
    }
}

#[test]
fn a_record_round_trips_and_notices_any_changed_byte() {
    let mut writer = Writer::new();
    let block = writer.next_block();
    let record = LogRecord::decode(&block).expect("whole");
    assert_eq!(record.encode(), block);
    for at in 0..block.len() {
        let mut bad = block.clone();
        bad[at] ^= 1;
        assert!(LogRecord::decode(&bad).is_err(), "byte {at}");
    }
    assert_eq!(LogRecord::decode(&[0; BLOCK]), Err(LogFault::Void));
}

#[test]
fn a_void_ring_is_an_intact_empty_log() {
    Writer::new().check(Trust::Intact);
}

#[test]
fn the_log_is_rebuilt_at_every_point_of_its_ring() {
    let mut writer = Writer::new();
    for _ in 0..200 {
        writer.write(1);
        writer.check(Trust::Intact);
    }
}

#[test]
fn a_torn_newest_transaction_costs_nothing() {
    for written in [0, 1, 5, 62, 63, 64, 65, 130] {
        for sectors in 1..8 {
            let mut writer = Writer::new();
            writer.write(written);
            writer.tear(sectors);
            writer.check(Trust::TornTail);
        }
    }
}

#[test]
fn a_torn_block_is_overwritten_first_in_the_next_log_epoch() {
    let mut writer = Writer::new();
    writer.write(70);
    writer.tear(3);
    writer.check(Trust::TornTail);
    writer.epoch += 1;
    writer.slots.fill(None);
    writer.check(Trust::TornTail);
    writer.write(1);
    writer.check(Trust::Intact);
    writer.write(100);
    writer.check(Trust::Intact);
}

#[test]
fn raising_the_log_epoch_empties_the_log() {
    let mut writer = Writer::new();
    writer.write(90);
    writer.epoch += 1;
    writer.slots.fill(None);
    writer.check(Trust::Intact);
    writer.write(3);
    writer.check(Trust::Intact);
}

#[test]
fn any_other_bad_block_is_doubt() {
    for written in [2, 10, 63, 64, 100] {
        let oldest = (written + 2u64).saturating_sub(LOG_BLOCKS).max(1);
        for bad in oldest..written {
            let mut writer = Writer::new();
            writer.write(written);
            writer.spoil(bad);
            assert_eq!(
                writer.recover().trust,
                Trust::Doubtful,
                "{bad} of {written}"
            );
            assert_eq!(writer.recover().next_number, 1);
        }
    }
}

#[test]
fn a_bad_block_where_nothing_was_written_is_doubt() {
    let mut writer = Writer::new();
    writer.write(5);
    writer.spoil(9);
    assert_eq!(writer.recover().trust, Trust::Doubtful);
}

#[test]
fn a_torn_block_beside_another_bad_one_is_doubt() {
    let mut writer = Writer::new();
    writer.write(100);
    writer.spoil(80);
    writer.tear(2);
    assert_eq!(writer.recover().trust, Trust::Doubtful);
}

#[test]
fn a_lost_write_is_doubt() {
    let mut writer = Writer::new();
    writer.write(100);
    let before = writer.ring.clone();
    writer.write(3);
    let at = (101 % LOG_BLOCKS) as usize * BLOCK;
    writer.ring[at..at + BLOCK].copy_from_slice(&before[at..at + BLOCK]);
    assert_eq!(writer.recover().trust, Trust::Doubtful);
}

#[test]
fn a_block_wiped_to_zeroes_is_doubt() {
    let mut writer = Writer::new();
    writer.write(100);
    writer.place(70, &[0; BLOCK]);
    assert_eq!(writer.recover().trust, Trust::Doubtful);
}

#[test]
fn transactions_of_a_later_log_epoch_than_the_superblock_are_doubt() {
    let mut writer = Writer::new();
    writer.epoch = EPOCH + 1;
    writer.write(4);
    assert_eq!(recover(&writer.ring, EPOCH, SLOTS).trust, Trust::Doubtful);
}

#[test]
fn slots_that_do_not_exist_are_doubt() {
    let mut writer = Writer::new();
    writer.write(40);
    assert_eq!(recover(&writer.ring, EPOCH, 100).trust, Trust::Doubtful);
}

#[test]
fn the_number_of_the_last_possible_transaction_is_doubt() {
    let mut writer = Writer::new();
    let block = LogRecord {
        log_epoch: EPOCH,
        number: u64::MAX,
        updates: Vec::new(),
        context_first: 0,
        context: Vec::new(),
    }
    .encode();
    writer.place(u64::MAX, &block);
    assert_eq!(writer.recover().trust, Trust::Doubtful);
}
