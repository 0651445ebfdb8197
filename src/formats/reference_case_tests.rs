use super::*;

/// A small valid case, to be broken.
fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    for (key, value) in [
        ("format", "reference-case/1"),
        ("op", "conv2d"),
        ("attributes", r#"{"stride": 1, "intermediates": ["b", "a"]}"#),
    ] {
        tensors.metadata.insert(key.into(), value.into());
    }
    for (name, shape, value) in [
        ("input.x", vec![1, 2], 1.0),
        ("parameter.weight", vec![3], 2.0),
        ("output.y", vec![2], 3.0),
        ("grad_output.y", vec![2], 4.0),
        ("grad_input.x", vec![1, 2], 5.0),
        ("grad_parameter.weight", vec![3], 6.0),
        ("intermediate.a", vec![1], 7.0),
        ("intermediate.b", vec![1], 8.0),
    ] {
        let count = shape.iter().product();
        tensors.insert(name, Tensor::f32(shape, vec![value; count]));
    }
    let twin = TensorData::F16(vec![f16::ONE; 2]);
    tensors.insert("half.output.y", Tensor::new([2], twin));
    tensors.insert("input.timesteps", Tensor::i64([1], vec![7]));
    tensors
}

fn refused(change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = tensors();
    change(&mut tensors);
    let said = ReferenceCase::from_tensors(tensors, Path::new("case")).unwrap_err().to_string();
    assert!(said.starts_with("case: "), "{said}");
    said
}

#[test]
fn a_case_is_sorted_into_its_parts() {
    let case = ReferenceCase::from_tensors(tensors(), Path::new("case")).unwrap();
    assert_eq!((case.op.as_str(), case.is_single_operation()), ("conv2d", true));
    assert_eq!(case.attributes, serde_json::from_str(r#"{"stride": 1}"#).unwrap());
    assert_eq!(case.input_f32("x").unwrap(), (&[1, 2][..], &[1.0, 1.0][..]));
    assert_eq!(case.input_i64("timesteps").unwrap().1, [7]);
    assert_eq!(case.parameter_f32("weight").unwrap().1, [2.0; 3]);
    assert!(case.input_f32("timesteps").unwrap_err().to_string().contains("must be F32"));
    assert!(case.input_i64("x").unwrap_err().to_string().contains("must be I64"));
    assert!(case.parameter_f32("bias").unwrap_err().to_string().contains("parameter.bias"));
    let paths: Vec<&str> = case.intermediates.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["b", "a"]);
    let wanted: Vec<_> =
        case.wanted().map(|w| (w.name, w.kind, w.half.map_or(0, <[f16]>::len))).collect();
    assert_eq!(
        wanted,
        [
            ("grad_input.x", Kind::Gradient, 0),
            ("grad_parameter.weight", Kind::Gradient, 0),
            ("output.y", Kind::Output, 2)
        ]
    );
    assert_eq!((case.rtol, case.atol), (None, None));
}

#[test]
fn tolerances_are_decimal_strings() {
    let mut tensors = tensors();
    tensors.metadata.insert("rtol".into(), "1e-2".into());
    tensors.metadata.insert("atol".into(), "0".into());
    let case = ReferenceCase::from_tensors(tensors, Path::new("case")).unwrap();
    assert_eq!((case.rtol, case.atol), (Some(0.01), Some(0.0)));
    for bad in ["", "-1", "NaN", "inf", "small"] {
        let said = refused(|t| drop(t.metadata.insert("atol".into(), bad.into())));
        assert!(said.contains("`atol` is"), "{said}");
    }
}

#[test]
fn contradictions_are_named() {
    let meta = |key: &'static str, value: &'static str| {
        refused(move |t| drop(t.metadata.insert(key.into(), value.into())))
    };
    assert!(meta("format", "reference-case/2").contains("reference-case/2"));
    assert!(refused(|t| drop(t.metadata.remove("format"))).contains("(none)"));
    assert!(refused(|t| drop(t.metadata.remove("op"))).contains("no `op`"));
    assert!(meta("op", "conv2").contains("did you mean `conv2d`"));
    assert!(meta("attributes", "{").contains("no valid JSON"));
    assert!(meta("attributes", "[]").contains("no JSON object"));
    assert!(meta("attributes", r#"{"intermediates": 3}"#).contains("list of paths"));
    assert!(meta("attributes", r#"{"intermediates": ["c"]}"#).contains("\"c\""));
    assert!(meta("attributes", r#"{"intermediates": ["a"]}"#).contains("`intermediate.b`"));
    assert!(meta("attributes", r#"{"intermediates": ["a","b","a"]}"#).contains("repeated"));
    let tensor = |name: &'static str, shape: &'static [usize]| {
        refused(move |t| {
            drop(t.insert(name, Tensor::f32(shape, vec![0.0; shape.iter().product()])))
        })
    };
    assert!(tensor("outputs.y", &[1]).contains("did you mean `output`"));
    assert!(tensor("y", &[1]).contains("no known prefix"));
    assert!(tensor("input.", &[1]).contains("no known prefix"));
    assert!(tensor("grad_output.z", &[1]).contains("`output.z`, which is missing"));
    assert!(tensor("grad_output.y", &[1, 2]).contains("`output.y` has [2]"));
    assert!(tensor("grad_input.z", &[1]).contains("`input.z`"));
    assert!(tensor("grad_parameter.weight", &[2]).contains("`parameter.weight` has [3]"));
    assert!(tensor("half.output.y", &[2]).contains("is F32"));
    assert!(refused(|t| drop(t.insert("output.z", Tensor::i64([1], vec![1])))).contains("is I64"));
    let only_inputs = refused(|t| {
        let names: Vec<String> = t.names().map(String::from).collect();
        for name in names.iter().filter(|name| !name.starts_with('i')) {
            t.remove(name);
        }
    });
    assert!(only_inputs.contains("nothing to compare"), "{only_inputs}");
}

#[test]
fn the_fixtures_are_valid_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            ReferenceCase::read(&path).unwrap();
            count += 1;
        }
    }
    assert!(count >= 50, "only {count} fixtures");
}
