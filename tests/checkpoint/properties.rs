//! Files nobody wrote by hand: nothing panics, and nothing is accepted that the safetensors crate refuses.

use ocelli::config::{Config, Files};
use ocelli::models;
use ocelli::weights::header::parse;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::config::{NEW_STYLE, preprocessor};
use crate::{file, next, phi3v, raw};

/// Whatever is accepted must be, to the crate that defines the format, the same tensors in the same places.
fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(entries) = parse(bytes) else { return Ok(()) };
    let theirs = SafeTensors::deserialize(bytes).expect("what is accepted here is valid there");
    prop_assert_eq!(theirs.len(), entries.len());
    for (name, entry) in entries {
        let view = theirs.tensor(&name).expect("the same names");
        prop_assert_eq!((view.dtype(), view.shape()), (entry.dtype, entry.shape.as_slice()));
        prop_assert_eq!(view.data(), &bytes[entry.range]);
    }
    Ok(())
}

fn dtype() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["F32", "F16", "BF16", "I32", "U8", "F64", "BOOL"])
}

/// Up to eight small tensors of distinct names.
fn tensors() -> impl Strategy<Value = Vec<(String, &'static str, Vec<usize>)>> {
    let tensor = (dtype(), prop::collection::vec(0usize..5, 0..4));
    prop::collection::btree_map("[a-z.0-9]{1,12}", tensor, 0..8)
        .prop_map(|map| map.into_iter().map(|(name, (dtype, shape))| (name, dtype, shape)).collect())
}

fn build(tensors: &[(String, &'static str, Vec<usize>)]) -> Vec<u8> {
    let borrowed: Vec<_> = tensors.iter().map(|(n, d, s)| (n.as_str(), *d, s.as_slice())).collect();
    file(&borrowed)
}

/// Numbers at which arithmetic goes wrong.
fn edge() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0u64..20).prop_map(Value::from),
        prop::sample::select(vec![
            json!(u64::MAX),
            json!(u64::MAX - 7),
            json!(1u64 << 63),
            json!(1u64 << 32),
            json!(4_194_305),
            json!(-1),
            json!(0.5),
            json!(1e308),
            json!("1"),
            Value::Null,
            json!([]),
            json!({})
        ]),
    ]
}

fn entry() -> impl Strategy<Value = Value> {
    let dtype = prop_oneof![dtype().prop_map(Value::from), Just(json!("F128")), edge()];
    (dtype, prop::collection::vec(edge(), 0..10), prop::collection::vec(edge(), 1..4))
        .prop_map(|(dtype, shape, at)| json!({ "dtype": dtype, "shape": shape, "data_offsets": at }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_good_file_is_accepted(tensors in tensors()) {
        let bytes = build(&tensors);
        let entries = parse(&bytes).unwrap();
        prop_assert_eq!(entries.len(), tensors.len());
        for (name, dtype, shape) in &tensors {
            prop_assert_eq!(&entries[name].shape, shape);
            prop_assert_eq!(entries[name].dtype.to_string(), *dtype);
        }
        agrees(&bytes)?;
    }

    #[test]
    fn a_good_file_with_a_changed_byte_never_means_something_else(
        tensors in tensors(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = build(&tensors);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        agrees(&bytes)?;
    }

    #[test]
    fn a_good_file_cut_or_extended_is_refused(tensors in tensors(), change in -40isize..40) {
        let mut bytes = build(&tensors);
        let length = bytes.len().saturating_add_signed(change);
        prop_assume!(length != bytes.len());
        bytes.resize(length, 0);
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn headers_of_extreme_numbers_never_panic(
        entries in prop::collection::vec(("[ab]?", entry()), 0..4), data in 0usize..64,
    ) {
        // A map would drop repeated names, so the text is put together here.
        let fields: Vec<_> = entries.iter().map(|(name, entry)| format!("{name:?}:{entry}")).collect();
        agrees(&raw(&format!("{{{}}}", fields.join(",")), &vec![0; data]))?;
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        agrees(&bytes)?;
    }

    #[test]
    fn settings_with_any_value_in_any_place_never_panic(
        part in 0usize..5, place in any::<prop::sample::Index>(), value in edge(),
    ) {
        let mut config: Value = serde_json::from_str(NEW_STYLE).unwrap();
        let mut image = preprocessor(28);
        let object = match part {
            0 => &mut config,
            1 => &mut config["text_config"],
            2 => &mut config["vision_config"],
            3 => &mut config["text_config"]["rope_parameters"],
            _ => &mut image,
        };
        let fields = object.as_object_mut().unwrap();
        let key = fields.keys().nth(place.index(fields.len())).unwrap().clone();
        fields[&key] = value;
        let (config, image) = (config.to_string(), image.to_string());
        let _ = Config::parse(&Files {
            config: config.as_bytes(),
            generation: Some(image.as_bytes()),
            preprocessor: Some(image.as_bytes()),
            processor: Some(config.as_bytes()),
        });
        let _ = Config::parse(&Files {
            config: config.as_bytes(), generation: None, preprocessor: Some(image.as_bytes()), processor: None,
        });
    }

    #[test]
    fn settings_of_tiles_with_any_value_in_any_place_never_panic(
        is_phi in any::<bool>(), part in 0usize..6, place in any::<prop::sample::Index>(), value in edge(),
    ) {
        let (mut config, mut image) =
            if is_phi { (phi3v::phi(), phi3v::pictures()) } else { (next::mistral(), next::pictures()) };
        let object = match (part, is_phi) {
            (0, _) => &mut config,
            (1, _) => &mut image,
            (2, true) => &mut config["rope_scaling"],
            (3, true) => &mut config["img_processor"],
            (_, true) => &mut config["embd_layer"],
            (2 | 3, false) => &mut config["text_config"],
            (_, false) => &mut config["vision_config"],
        };
        let fields = object.as_object_mut().unwrap();
        let key = fields.keys().nth(place.index(fields.len())).unwrap().clone();
        fields[&key] = value;
        let (config, image) = (config.to_string(), image.to_string());
        let files = Files {
            config: config.as_bytes(), generation: None, preprocessor: Some(image.as_bytes()), processor: None,
        };
        // Whatever is accepted can be described without a panic, too.
        let family = if is_phi { "Phi3VForCausalLM" } else { "LlavaNextForConditionalGeneration" };
        let _ = (models::find(family, &[]).unwrap().read)(&files);
    }
}
