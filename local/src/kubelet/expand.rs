//! `$(NAME)` references in commands, arguments and variables, as the kubelet resolves them.

/// Replaces each `$(NAME)` that `lookup` knows; what it does not know stays as it is, and `$$` is one dollar sign.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if let Some(value) = lookup(name) {
                out.push_str(&value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_the_kubelet_does() {
        let lookup = |name: &str| (name == "POD_IP").then(|| "127.1.2.3".to_owned());
        for (text, expected) in [
            ("http://$(POD_IP):80/", "http://127.1.2.3:80/"),
            ("$(OTHER) stays", "$(OTHER) stays"),
            ("$$(POD_IP)", "$(POD_IP)"),
            ("$HOME and $(", "$HOME and $("),
            ("cost: 5$", "cost: 5$"),
        ] {
            assert_eq!(expand(text, lookup), expected);
        }
    }
}
