//! Lists of seeds and of classes as people write them: `0-63`, `7`, `1,5,9-12`.

use crate::error::{Error, Result};

/// More would be a slip of the finger.
const MOST: usize = 1_000_000;

/// The seeds in the order they are written; each gives one image its own stream of noise.
///
/// # Errors
/// Anything but numbers and ascending ranges of them, a seed that is listed twice, or more than a
/// million seeds.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>> {
    let seeds = parse_list("seeds", text)?;
    let mut sorted = seeds.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(refusal("seeds", text, "name one twice"));
    }
    Ok(seeds)
}

/// The class of each of `count` images of a network that knows `classes`: as `text` lists them, one for
/// all where it names one alone, and one class after another where it is empty. `None` for all where
/// the network knows none.
///
/// # Errors
/// As [`parse_seeds`], but that a class may be listed twice; another number of classes than images, and
/// classes that are not known.
pub fn labels(text: &str, classes: usize, count: usize) -> Result<Vec<Option<usize>>> {
    if classes == 0 && text.trim().is_empty() {
        return Ok(vec![None; count]);
    }
    if text.trim().is_empty() {
        return Ok((0..count).map(|image| Some(image % classes)).collect());
    }
    let mut list = Vec::new();
    for label in parse_list("labels", text)? {
        let label = usize::try_from(label).unwrap_or(usize::MAX);
        check_label(label, classes)?;
        list.push(Some(label));
    }
    match list[..] {
        [one] => Ok(vec![one; count]),
        _ if list.len() == count => Ok(list),
        _ => Err(Error::invalid(format!(
            "there are {} labels for {count} images; give one for each, or one for all",
            list.len()
        ))),
    }
}

/// # Errors
/// A class that a network of so many classes does not know.
pub fn check_label(label: usize, classes: usize) -> Result<()> {
    if label < classes {
        return Ok(());
    }
    let known = match classes {
        0 => "the model was trained without labels".into(),
        _ => format!("the model knows the classes 0 to {}", classes - 1),
    };
    Err(Error::invalid(format!("there is no class {label}; {known}")))
}

fn refusal(kind: &str, text: &str, what: &str) -> Error {
    let shown: String = text.chars().take(60).collect();
    Error::invalid(format!("the {kind} \"{shown}\" {what}; write them like 0-63 or 1,5,9-12"))
}

/// Numbers and ascending ranges of them.
fn parse_list(kind: &str, text: &str) -> Result<Vec<u64>> {
    let refuse = |what: &str| Err(refusal(kind, text, what));
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
    fn labels_are_those_that_the_network_knows() {
        assert_eq!(labels("", 0, 2).unwrap(), [None, None]);
        assert_eq!(labels("", 2, 3).unwrap(), [Some(0), Some(1), Some(0)]);
        assert_eq!(labels("4", 5, 2).unwrap(), [Some(4), Some(4)]);
        assert_eq!(labels("3,0-1,3", 5, 4).unwrap(), [Some(3), Some(0), Some(1), Some(3)]);
        for (text, classes, part) in [
            ("5", 5, "no class 5; the model knows the classes 0 to 4"),
            ("0", 0, "trained without labels"),
            ("0-2", 5, "3 labels for 2 images"),
            ("x", 5, "the labels \"x\""),
        ] {
            let said = labels(text, classes, 2).expect_err(text).to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
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
