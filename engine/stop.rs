//! Ends streamed text before a given string, also when the string arrives in pieces.

use crate::error::{Error, Result};

/// Passes text on until one of some strings occurs in it.
pub struct StopFilter {
    stops: Vec<String>,
    /// Text that was not passed on, as it may be the beginning of a stop string.
    held: String,
}

/// What [`StopFilter::push`] lets through.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text to print.
    pub text: String,
    /// The stop string that follows it, if one was found.
    pub stop: Option<String>,
}

impl StopFilter {
    /// Returns a filter for these strings.
    ///
    /// # Errors
    /// [`Error::Input`] when one is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Input("--stop is empty: expected the text to stop before".to_owned()));
        }
        Ok(Self { stops, held: String::new() })
    }

    /// Returns what can be printed now that `text` has arrived.
    pub fn push(&mut self, text: &str) -> Passed {
        self.held += text;
        // The stop that completes first ends the text, however it is split; of two that end together, the
        // longer.
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, stop)| (at + stop.len(), *at)) {
            self.held.truncate(at);
            return Passed { text: std::mem::take(&mut self.held), stop: Some(stop.clone()) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Passed { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Returns what was held back, once no more text can complete it.
    pub fn finish(self) -> String {
        self.held
    }
}

/// Returns the length of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let mut lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that passes, and whether it was stopped.
    fn filter(stops: &[&str], pieces: &[String]) -> (String, bool) {
        let mut filter = StopFilter::new(stops.iter().map(ToString::to_string).collect()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let passed = filter.push(piece);
            text += &passed.text;
            if passed.stop.is_some() {
                return (text, true);
            }
        }
        (text + &filter.finish(), false)
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut filter = StopFilter::new(vec!["\n\nThe".into(), "END".into()]).unwrap();
        let mut push = |text: &str| filter.push(text);
        assert_eq!(push("a fox\n"), Passed { text: "a fox".into(), stop: None });
        assert_eq!(push("\n"), Passed { text: String::new(), stop: None });
        assert_eq!(push("\nE"), Passed { text: "\n\n\n".into(), stop: None });
        assert_eq!(push("N"), Passed { text: String::new(), stop: None });
        assert_eq!(push("D of it"), Passed { text: String::new(), stop: Some("END".into()) });
    }

    #[test]
    fn the_first_complete_stop_wins_and_empty_ones_are_refused() {
        let pieces = ["one two three".to_owned()];
        assert_eq!(filter(&["three", "two"], &pieces), ("one ".to_owned(), true));
        assert_eq!(filter(&["two three", "three"], &pieces), ("one ".to_owned(), true));
        assert_eq!(filter(&["é"], &["caf".to_owned(), "é".to_owned()]), ("caf".to_owned(), true));
        assert!(StopFilter::new(vec![String::new()]).is_err());
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_text_as_the_whole(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let found = stops.iter().filter_map(|stop| whole.find(stop).map(|at| (at + stop.len(), at)));
            let end = found.min().map(|(_, start)| start);
            let (text, stopped) = filter(&stops, &pieces);
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(text.as_str(), &whole[..end.unwrap_or(whole.len())]);
        }
    }
}
