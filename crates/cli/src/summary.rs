//! Median and range of every figure over several runs.
//!
//! A fold over the runs' JSON: where the runs have a number, the summary has median, minimum and maximum. Other values
//! are kept if all runs agree. So this needs no change when the report gets a new figure.

use serde_json::{Map, Number, Value, json};

/// The summary of `runs`, which have the same shape.
pub fn of_values(runs: &[&Value]) -> Value {
    match runs.first() {
        Some(Value::Number(_)) => {
            let numbers: Vec<&Number> = runs.iter().filter_map(|value| value.as_number()).collect();
            of_numbers(&numbers)
        }
        Some(Value::Object(first)) => {
            let of_key = |key: &String| {
                let values: Vec<&Value> = runs.iter().filter_map(|run| run.get(key)).collect();
                (key.clone(), of_values(&values))
            };
            Value::Object(
                first
                    .keys()
                    .map(of_key)
                    .filter(|(_, value)| !value.is_null())
                    .collect(),
            )
        }
        Some(Value::Array(first)) => {
            let of_index = |index: usize| {
                let values: Vec<&Value> = runs.iter().filter_map(|run| run.get(index)).collect();
                of_values(&values)
            };
            Value::Array((0..first.len()).map(of_index).collect())
        }
        Some(first) if runs.iter().all(|run| run == first) => (*first).clone(),
        _ => Value::Null,
    }
}

/// Median, minimum and maximum.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    };
    Some(Spread { median, min, max })
}

/// Median and range.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The value in the middle, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

fn of_numbers(numbers: &[&Number]) -> Value {
    let values: Vec<f64> = numbers
        .iter()
        .filter_map(|number| number.as_f64())
        .collect();
    let Some(Spread { median, min, max }) = spread(&values) else {
        return Value::Null;
    };
    let whole = numbers.iter().all(|number| number.is_u64());
    let number = |value: f64| {
        // Counts stay integers; only the median of an even number of them may end in .5.
        if whole && value.fract() == 0.0 && value < (1u64 << 53) as f64 {
            json!(value as u64)
        } else {
            json!((value * 10_000.0).round() / 10_000.0)
        }
    };
    let mut spread = Map::new();
    spread.insert("median".into(), number(median));
    spread.insert("min".into(), number(min));
    spread.insert("max".into(), number(max));
    Value::Object(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_spreads_and_the_rest_stays() {
        let runs = [
            json!({"name": "pinned", "n": 3, "f": 0.5, "list": [1, 2], "hash": "a"}),
            json!({"name": "pinned", "n": 10, "f": 0.25, "list": [3, 2], "hash": "b"}),
            json!({"name": "pinned", "n": 4, "f": 0.1, "list": [2, 2], "hash": "c"}),
        ];
        let runs: Vec<&Value> = runs.iter().collect();
        assert_eq!(
            of_values(&runs),
            json!({
                "name": "pinned",
                "n": {"median": 4, "min": 3, "max": 10},
                "f": {"median": 0.25, "min": 0.1, "max": 0.5},
                "list": [{"median": 2, "min": 1, "max": 3}, {"median": 2, "min": 2, "max": 2}],
            })
        );
    }

    #[test]
    fn keys_keep_their_order() {
        let run = json!({"z": 1, "a": 2, "m": 3});
        let text = of_values(&[&run]).to_string();
        assert!(text.find("\"z\"") < text.find("\"a\"") && text.find("\"a\"") < text.find("\"m\""));
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(spread(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[]), None);
        assert_eq!(
            of_values(&[&json!(1), &json!(2)]),
            json!({"median": 1.5, "min": 1, "max": 2})
        );
        assert_eq!(
            of_values(&[&json!(1), &json!(3)]),
            json!({"median": 2, "min": 1, "max": 3})
        );
    }
}
