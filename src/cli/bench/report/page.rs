//! The page: one file with its style in it, and pieces that sections are made of.

use super::svg::escape;

/// Widths of a drawing for a desk and for a telephone. The page shows the one that fits.
pub(super) const WIDTHS: [(&str, f64); 2] = [("wide", 960.0), ("narrow", 352.0)];

/// A table whose first columns are words and whose others are numbers.
pub(super) struct Table {
    words: usize,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new(words: &[&str], numbers: &[&str]) -> Table {
        let head = words.iter().chain(numbers).map(|name| (*name).to_owned()).collect();
        Table { words: words.len(), head, rows: Vec::new() }
    }

    /// Add a row with as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The element, in a box that scrolls sideways where it is too wide.
    pub fn html(&self) -> String {
        let line = |tag: &str, cells: &[String]| {
            let cell = |(i, text): (usize, &String)| {
                let class = if i < self.words { "" } else { " class=\"n\"" };
                let scope = if tag == "th" { " scope=\"col\"" } else { "" };
                format!("<{tag}{scope}{class}>{}</{tag}>", escape(text))
            };
            format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
        };
        let rows: String = self.rows.iter().map(|row| line("td", row)).collect();
        format!(
            "<div class=\"scroll\" tabindex=\"0\"><table><thead>{}</thead><tbody>{rows}</tbody></table></div>\n",
            line("th", &self.head)
        )
    }
}

/// Names and what they stand for.
pub(super) fn definitions(class: &str, said: &[(&str, String)]) -> String {
    let one = |(name, text): &(&str, String)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(text));
    format!("<dl class=\"{class}\">{}</dl>\n", said.iter().map(one).collect::<String>())
}

/// A drawing in both widths, with a title above it and some HTML below.
pub(super) fn figure(caption: &str, below: &str, draw: impl Fn(&str, f64) -> String) -> String {
    let drawings: String = WIDTHS.iter().map(|(class, width)| draw(class, *width)).collect();
    format!("<figure><figcaption>{}</figcaption>\n{drawings}{below}</figure>\n", escape(caption))
}

/// A part of the page, if there is anything in it.
pub(super) fn section(title: &str, intro: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    let intro = if intro.is_empty() { String::new() } else { format!("<p class=\"intro\">{intro}</p>\n") };
    format!("<section>\n<h2>{}</h2>\n{intro}{body}</section>\n", escape(title))
}

/// The whole file. It asks nobody for anything and runs nothing, whatever the files say that it was made from.
pub(super) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        include_str!("style.css")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_text_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&["op"], &["ms"]);
        table.row(vec!["<script>".into(), "1.00".into()]);
        let html = table.html();
        assert!(html.contains("<td>&lt;script&gt;</td><td class=\"n\">1.00</td>"), "{html}");
        assert!(html.contains("<th scope=\"col\">op</th><th scope=\"col\" class=\"n\">ms</th>"));
    }

    #[test]
    fn a_section_without_anything_is_not_there() {
        assert_eq!(section("Roofline", "", ""), "");
        assert!(section("Roofline", "", "x").contains("<h2>Roofline</h2>"));
    }
}
