//! Which of the numbered writes a disk holds.

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writes {
    words: Vec<u64>,
}

impl Writes {
    pub fn insert(&mut self, number: usize) {
        let word = number / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (number % 64);
    }

    pub fn contains(&self, number: usize) -> bool {
        self.words
            .get(number / 64)
            .is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// The lowest that is here and not there.
    pub fn first_missing_in(&self, other: &Self) -> Option<usize> {
        self.words.iter().enumerate().find_map(|(index, word)| {
            let missing = word & !other.words.get(index).copied().unwrap_or(0);
            (missing != 0).then(|| index * 64 + missing.trailing_zeros() as usize)
        })
    }

    /// Only what the other has too is left.
    pub fn retain_in(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        for (word, theirs) in self.words.iter_mut().zip(&other.words) {
            *word &= theirs;
        }
    }

    pub fn count_missing_in(&self, other: &Self) -> u64 {
        self.words
            .iter()
            .enumerate()
            .map(|(index, word)| word & !other.words.get(index).copied().unwrap_or(0))
            .map(|missing| u64::from(missing.count_ones()))
            .sum()
    }
}
