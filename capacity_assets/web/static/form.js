// Omits empty fields from the address of the form.
document.querySelectorAll("form.assumptions").forEach(function (form) {
  form.addEventListener("formdata", function (event) {
    [...event.formData].forEach(function (one) { if (!one[1].trim()) event.formData.delete(one[0]); });
  });
});
