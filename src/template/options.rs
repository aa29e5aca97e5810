//! The options block: the answers a prompt offers, as FLAN prints them.

/// `OPTIONS:` and a line for each option, without a newline at the end.
///
/// FLAN v1 never shuffles the options, and neither numbers nor letters them (google-research/FLAN,
/// `flan/preprocessors.py`, `format_options`).
pub fn block(options: &[String]) -> String {
    let mut text = "OPTIONS:".to_owned();
    for option in options {
        text.push_str("\n- ");
        text.push_str(option);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn block_is_flans() {
        assert_eq!(super::block(&["no".into(), "yes".into()]), "OPTIONS:\n- no\n- yes");
    }
}
