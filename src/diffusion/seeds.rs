//! Lists of seeds as people write them: `0-63`, `7`, `1,5,9-12`.

use crate::error::{Error, Result};

/// More would be a slip of the finger.
const MOST: usize = 1_000_000;

/// The seeds in the order they are written; each gives one image its own stream of noise.
///
/// # Errors
/// Anything but numbers and ascending ranges of them, a seed that is listed twice, or more than a
/// million seeds.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>> {
    let refuse = |what: &str| {
        let shown: String = text.chars().take(60).collect();
        Err(Error::invalid(format!(
            "the seeds \"{shown}\" {what}; write them like 0-63 or 1,5,9-12"
        )))
    };
    let mut seeds = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<u64>(), last.trim().parse::<u64>())
        else {
            return refuse("are no numbers or ranges");
        };
        if last < first {
            return refuse("have a range that runs backwards");
        }
        if last - first >= (MOST - seeds.len()) as u64 {
            return refuse("are more than a million");
        }
        seeds.extend(first..=last);
    }
    let mut sorted = seeds.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return refuse("name one twice");
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_in_their_order() {
        assert_eq!(parse_seeds("0-3").unwrap(), [0, 1, 2, 3]);
        assert_eq!(parse_seeds(" 7").unwrap(), [7]);
        assert_eq!(parse_seeds("9, 1-2,5").unwrap(), [9, 1, 2, 5]);
        assert_eq!(parse_seeds(&format!("{0}-{0}", u64::MAX)).unwrap(), [u64::MAX]);
        assert_eq!(parse_seeds("0-999999").unwrap().len(), 1_000_000);
    }

    #[test]
    fn slips_are_refused() {
        for (text, part) in [
            ("", "no numbers"),
            ("a", "no numbers"),
            ("-1", "no numbers"),
            ("1-", "no numbers"),
            ("1-2-3", "no numbers"),
            ("5-3", "backwards"),
            ("1,1", "twice"),
            ("0-3,2", "twice"),
            ("0-1000000", "million"),
            ("0-18446744073709551615", "million"),
            ("0-999999,7000000", "million"),
        ] {
            let said = parse_seeds(text).expect_err(text).to_string();
            assert!(said.contains(part) && said.contains("0-63"), "{text}: {said}");
        }
    }
}
