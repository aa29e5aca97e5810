//! Packing: prompts of any length become rows of one length.
//!
//! Prompts come in the mixture's order. A pool of the next [`POOL`] is kept; a row is begun with the first of them
//! and filled with the largest that still fits, again and again. Rows therefore follow the mixture's order as far as
//! the pool reaches, no prompt is split, and as long as the pool holds short prompts next to nothing is left empty:
//! only the last rows of a shard, where the pool runs dry, are padded to speak of.

use std::collections::VecDeque;

/// Prompts to choose from. Ten thousand are enough for padding far below 1 % on FLAN-like lengths, and little to hold.
const POOL: usize = 10_000;

/// Rows of prompts, by their indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Of all rows, one after another.
    prompts: Vec<u32>,
    ends: Vec<u32>,
}

impl Rows {
    /// Rows of one prompt each, in order.
    pub fn single(prompts: u32) -> Rows {
        Rows { prompts: (0..prompts).collect(), ends: (1..=prompts).collect() }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The prompts of a row.
    pub fn get(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.prompts[start as usize..self.ends[row] as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|row| self.get(row))
    }
}

/// Packs prompts of `lengths` into rows of `capacity` tokens.
///
/// # Panics
/// If a length is 0 or greater than `capacity`: prompts are cut to length before they come here.
pub fn pack(lengths: &[u32], capacity: u32) -> Rows {
    let mut rows = Rows::default();
    let mut pool = Pool::new(capacity);
    let mut next = 0;
    loop {
        while pool.held < POOL && next < lengths.len() {
            assert!(lengths[next] > 0 && lengths[next] <= capacity, "a prompt of {} tokens", lengths[next]);
            pool.add(next as u32, lengths[next]);
            next += 1;
        }
        let Some(first) = pool.take_first() else { return rows };
        let mut room = capacity - lengths[first as usize];
        rows.prompts.push(first);
        while let Some(prompt) = pool.take_largest(room) {
            room -= lengths[prompt as usize];
            rows.prompts.push(prompt);
        }
        rows.ends.push(rows.prompts.len() as u32);
    }
}

struct Pool {
    /// Prompts by length, each list in order.
    by_length: Vec<VecDeque<u32>>,
    /// A bit for each length that has prompts.
    occupied: Vec<u64>,
    /// All prompts in order, those taken among them until they come to the front.
    order: VecDeque<(u32, u32)>,
    held: usize,
}

impl Pool {
    fn new(capacity: u32) -> Pool {
        let lengths = capacity as usize + 1;
        Pool {
            by_length: vec![VecDeque::new(); lengths],
            occupied: vec![0; lengths.div_ceil(64)],
            order: VecDeque::new(),
            held: 0,
        }
    }

    fn add(&mut self, prompt: u32, length: u32) {
        self.by_length[length as usize].push_back(prompt);
        self.occupied[length as usize / 64] |= 1 << (length % 64);
        self.order.push_back((prompt, length));
        self.held += 1;
    }

    /// The first prompt in order.
    fn take_first(&mut self) -> Option<u32> {
        while let Some((prompt, length)) = self.order.pop_front() {
            // One that is no longer the first of its length was taken before.
            if self.by_length[length as usize].front() == Some(&prompt) {
                return Some(self.take(length));
            }
        }
        None
    }

    /// The first prompt of the greatest length that is at most `room`.
    fn take_largest(&mut self, room: u32) -> Option<u32> {
        let mut word = room as usize / 64;
        let mut bits = self.occupied[word] & (u64::MAX >> (63 - room % 64));
        loop {
            if bits != 0 {
                return Some(self.take((word * 64) as u32 + 63 - bits.leading_zeros()));
            }
            word = word.checked_sub(1)?;
            bits = self.occupied[word];
        }
    }

    fn take(&mut self, length: u32) -> u32 {
        let prompts = &mut self.by_length[length as usize];
        // Both callers have seen that there is one.
        let prompt = prompts.pop_front().expect("a prompt of this length");
        if prompts.is_empty() {
            self.occupied[length as usize / 64] &= !(1 << (length % 64));
        }
        self.held -= 1;
        prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_prompt_is_in_one_row_and_rows_fit(lengths in prop::collection::vec(1u32..=300, 0..2000)) {
            let rows = pack(&lengths, 300);
            let mut seen: Vec<u32> = rows.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for row in rows.iter() {
                prop_assert!(row.iter().map(|&p| lengths[p as usize]).sum::<u32>() <= 300);
            }
            // A row is closed only when nothing in the pool fits, so with a pool that holds all there are never
            // two rows that are both half empty.
            let half = rows.iter().filter(|row| row.iter().map(|&p| lengths[p as usize]).sum::<u32>() <= 150).count();
            prop_assert!(half <= 1);
        }
    }

    #[test]
    fn flan_like_lengths_leave_little_padding() {
        // Many short prompts, a few near the limit.
        let stream = crate::seed::Seed(1).stream(&["lengths"]);
        let lengths: Vec<u32> = (0..50_000)
            .map(|i| match stream.draw(i) % 10 {
                0 => 700 + (stream.at(i).draw(1) % 580) as u32,
                1..4 => 150 + (stream.at(i).draw(1) % 400) as u32,
                _ => 20 + (stream.at(i).draw(1) % 120) as u32,
            })
            .collect();
        let rows = pack(&lengths, 2048);
        let tokens: u64 = lengths.iter().map(|&n| u64::from(n)).sum();
        let padding = 1.0 - tokens as f64 / (rows.len() as f64 * 2048.0);
        assert!(padding < 0.005, "{padding}");
    }
}
