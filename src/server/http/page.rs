//! `/`: a page to ask questions about pictures with. It uses the interface that everybody else has.

use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use crate::server::openai::unique_id;

/// The whole page: it loads nothing else.
const PAGE: &str = include_str!("playground.html");

/// The page with its headers. Only its own script and style run, under a word that is new every time; they talk to this
/// server alone, show pictures that the reader chose, and cannot turn text into elements.
pub(super) fn page(max_body_bytes: usize) -> ([(HeaderName, String); 5], String) {
    let nonce = unique_id("");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".into()),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
        (REFERRER_POLICY, "no-referrer".into()),
        // Its word holds for one answer.
        (CACHE_CONTROL, "no-store".into()),
    ];
    (headers, PAGE.replace("{nonce}", &nonce).replace("{max_body_bytes}", &max_body_bytes.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_script_and_style_carry_the_word_of_this_answer() {
        let (headers, text) = page(1234);
        let policy = &headers.iter().find(|(name, _)| name == CONTENT_SECURITY_POLICY).unwrap().1;
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
        assert_eq!(nonce.len(), 32);
        assert_eq!(policy.matches(nonce).count(), 2);
        for tag in ["<script", "<style"] {
            assert_eq!(text.matches(tag).count(), text.matches(&format!("{tag} nonce=\"{nonce}\">")).count(), "{tag}");
        }
        assert!(text.contains("name=\"max-body-bytes\" content=\"1234\""));
        assert!(!page(1234).1.contains(nonce), "another answer has the same word");
    }

    #[test]
    fn it_names_no_other_place_and_has_no_inline_handlers_or_styles() {
        for part in
            ["src=\"", "style=\"", " onclick=\"", " onload=\"", "innerHTML", "eval(", "@import", "url(", "https:"]
        {
            assert!(!PAGE.contains(part), "{part}");
        }
    }
}
