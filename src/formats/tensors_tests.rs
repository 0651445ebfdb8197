use super::*;

fn sample() -> Tensors {
    let mut tensors = Tensors::new();
    tensors.metadata.insert("format".into(), "pt".into());
    tensors.metadata.insert("another".into(), "key, \"quoted\"".into());
    tensors.insert("b.weight", Tensor::f32([2, 3], vec![1.5, -2.0, 0.0, 1e-30, 3.0, -0.0]));
    tensors.insert("a", Tensor::i64([2], vec![-5, i64::MAX]));
    tensors
        .insert("h", Tensor::new([3], TensorData::F16([0.5, 1.0, -2.0].map(f16::from_f32).into())));
    tensors.insert("g", Tensor::new([1], TensorData::Bf16(vec![bf16::from_f32(0.25)])));
    tensors.insert("d", Tensor::new([], TensorData::F64(vec![0.1])));
    tensors.insert("none", Tensor::f32([0, 4], vec![]));
    tensors.insert("u", Tensor::new([3], TensorData::U8(vec![0, 127, 255])));
    tensors
}

/// A file whose header is `json`, followed by `data`.
fn file(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let said = Tensors::read(&path).expect_err("a broken file").to_string();
    assert!(said.contains("broken.safetensors"), "{said}");
    said
}

#[test]
fn what_is_written_is_read_back_and_the_bytes_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("1"), folder.path().join("2"));
    let tensors = sample();
    tensors.write(&first).unwrap();
    assert_eq!(Tensors::read(&first).unwrap(), tensors);
    sample().write(&second).unwrap();
    let bytes = std::fs::read(&first).unwrap();
    assert_eq!(bytes, std::fs::read(&second).unwrap());
    // Another implementation agrees, and its views are aligned.
    let other = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.tensor("b.weight").unwrap().shape(), [2, 3]);
    let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
}

#[test]
fn truncated_and_lying_files_are_refused_without_a_big_allocation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    sample().write(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 20, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..length]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    refused(&longer);
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let said = refused(&huge);
    assert!(said.contains("claims 1152921504606846976 bytes"), "{said}");
    refused(&[0xff; 64]);
    refused(&file("{\"a\": ", &[]));
    refused(&file("[]", &[]));
    refused(&file(&"[".repeat(100_000), &[]));
    refused(&file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]));
    refused(&file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]));
    refused(&file(
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#,
        &[0; 4],
    ));
    refused(&file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]));
    let said =
        refused(&file(r#"{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}"#, &[0; 4]));
    assert!(said.contains("`a` has the element type BOOL"), "{said}");
}

#[test]
fn folders_and_missing_files_are_errors_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Tensors::read(folder.path()).unwrap_err().to_string().contains("is no file"));
    let said = Tensors::read(folder.path().join("absent")).unwrap_err().to_string();
    assert!(said.contains("absent"), "{said}");
}

#[test]
fn names_shapes_and_kinds_are_checked() {
    let path = Path::new("weights");
    let mut tensors = sample();
    let said = tensors.require_names(["a", "b.weight", "missing"], path).unwrap_err().to_string();
    for part in ["weights", "`missing`", "`d`", "`g`", "and 2 more", "not a pair"] {
        assert!(said.contains(part), "{said}");
    }
    let all: Vec<String> = tensors.names().map(String::from).collect();
    tensors.require_names(all.iter().map(String::as_str), path).unwrap();
    let said = tensors.clone().take_f32("b.weight", &[3, 2], path).unwrap_err().to_string();
    assert!(said.contains("[2, 3]") && said.contains("[3, 2]"), "{said}");
    let said = tensors.clone().take_f32("a", &[2], path).unwrap_err().to_string();
    assert!(said.contains("`a` is I64"), "{said}");
    assert_eq!(tensors.take_f32("h", &[3], path).unwrap(), [0.5, 1.0, -2.0]);
    assert_eq!(tensors.take_f32("d", &[], path).unwrap(), [0.1]);
    assert!(tensors.take_f32("d", &[], path).unwrap_err().to_string().contains("lacks"));
}

#[test]
fn non_finite_values_are_found_where_they_are() {
    let path = Path::new("weights");
    let mut tensors = sample();
    tensors.require_finite(path).unwrap();
    tensors.insert("h", Tensor::new([2], TensorData::F16(vec![f16::ZERO, f16::INFINITY])));
    let said = tensors.require_finite(path).unwrap_err().to_string();
    assert!(said.contains("`h` is NaN or infinite at element 1"), "{said}");
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(sample().write(folder.path().join("no/such/folder")).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
