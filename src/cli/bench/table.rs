//! A record for people.

use super::record::{Bench, Ceilings, Figure, Input, Record};

/// Width of the first column.
const WHAT: usize = 44;

/// What ran where, what was asked, and a line for every figure.
pub(super) fn table(record: &Record) -> String {
    let percent = record.figures.0.iter().any(|(_, figure)| figure.ceiling_percent.is_some());
    let mut text = machine(record) + &work(record);
    let columns = ["mean", "median", "p90", "p99"].map(|name| format!("{name:>10}")).concat();
    text += &format!("{:WHAT$}{columns}{:>25}", "", "medians of the repeats");
    text += if percent { "  % of ceiling\n" } else { "\n" };
    for (_, figure) in &record.figures.0 {
        text += &row(figure);
    }
    text
}

fn machine(record: &Record) -> String {
    let Record { model, dtype, load_format, gpu, driver, backend, ceilings, .. } = record;
    let driver = driver.as_ref().map_or_else(String::new, |driver| format!(", driver {driver}"));
    let ceilings = ceilings.as_ref().map_or_else(String::new, |Ceilings { read_gb_s, matrix_tflop_s, .. }| {
        format!("; it reads {read_gb_s:.0} GB/s and multiplies at {matrix_tflop_s:.0} TFLOP/s")
    });
    format!("{model} in {dtype} ({load_format}), {backend} on {gpu}{driver}{ceilings}\n")
}

fn work(record: &Record) -> String {
    let input = &record.input;
    let shown = (!input.pictures.is_empty()).then(|| pictures(&input.pictures));
    let seen = input.image_tokens.map_or_else(String::new, |tokens| format!("{tokens} of "));
    let (prompt, answer) = (input.prompt_tokens, input.output_tokens);
    let mut text = match (record.bench, shown) {
        (Bench::Vision, _) => format!("times of one picture of {}", input.pictures.join(", ")),
        (_, None) => format!("{prompt} prompt tokens, {answer} of answer"),
        (_, Some(shown)) => format!("{prompt} prompt tokens ({seen}{shown}), {answer} of answer"),
    };
    if let Some(n) = input.concurrency {
        text += &format!(", {n} at once");
    }
    if let Some(rate) = input.request_rate {
        text += &format!(", {rate} a second");
    }
    let Input { requests, repeats, warmup, seed, .. } = input;
    text + &format!("; {requests} a repeat, repeats: {repeats}, warm-up: {warmup}, seed: {seed}\n")
}

/// `3 pictures: 640x480 (2), 336x336`
fn pictures(sizes: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for size in sizes {
        match counts.iter_mut().find(|(found, _)| found == size) {
            Some((_, count)) => *count += 1,
            None => counts.push((size, 1)),
        }
    }
    let size = |(size, count): &(&str, usize)| if *count > 1 { format!("{size} ({count})") } else { (*size).into() };
    let plural = if sizes.len() == 1 { "" } else { "s" };
    format!("{} picture{plural}: {}", sizes.len(), counts.iter().map(size).collect::<Vec<_>>().join(", "))
}

fn row(figure: &Figure) -> String {
    let name = format!("{}, {}", figure.what, figure.unit);
    let columns = [figure.mean, figure.median, figure.p90, figure.p99].map(|value| format!("{:>10}", number(value)));
    let (low, high) = figure.range();
    let range = format!("{} .. {}", number(low), number(high));
    let percent = figure.ceiling_percent.map_or_else(String::new, |percent| format!("{percent:>14.1}"));
    format!("{name:WHAT$}{}{range:>25}{percent}\n", columns.concat())
}

/// Four digits, and four behind the point at most.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 999.95 => 0,
        size if size >= 99.995 => 1,
        size if size >= 9.9995 => 2,
        size if size >= 0.99995 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn a_line_has_all_there_is_of_a_figure() {
        let mut record = record(&[vec![10.0, 30.0, 20.0], vec![40.0]]);
        record.input.pictures = ["640x480", "336x336", "640x480"].map(str::to_owned).to_vec();
        record.input.image_tokens = Some(1728);
        let text = table(&record);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "llava-1.5-7b in bf16 (dummy), cuda on NVIDIA H200, driver 580.159.04 (CUDA 13.0); it reads 400 GB/s and \
             multiplies at 781 TFLOP/s"
        );
        assert!(
            lines[1]
                .starts_with("645 prompt tokens (1728 of 3 pictures: 640x480 (2), 336x336), 0 of answer; 0 a repeat")
        );
        assert!(lines[2].ends_with("medians of the repeats  % of ceiling"));
        let words: Vec<_> = lines[3].split_whitespace().collect();
        assert_eq!(words, ["first", "token,", "ms", "25.00", "25.00", "37.00", "39.70", "20.00", "..", "40.00"]);
        assert!(lines[5].ends_with("           6.2"), "{}", lines[5]);
        record.figures.0.truncate(2);
        assert!(!table(&record).contains("ceiling"), "no column without a number");
    }

    #[test]
    fn numbers_have_four_digits() {
        let all = [0.01234, 1.0, 9.9996, 12.345, 99.996, 123.45, 999.96, 12345.6].map(number);
        assert_eq!(all, ["0.0123", "1.000", "10.00", "12.35", "100.0", "123.5", "1000", "12346"]);
    }
}
