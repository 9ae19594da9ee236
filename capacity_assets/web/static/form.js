// Leaves what is empty out of the address of a form.
document.querySelectorAll("form.assumptions").forEach(function (form) {
  form.addEventListener("formdata", function (event) {
    [...event.formData].forEach(function (one) { if (!one[1].trim()) event.formData.delete(one[0]); });
  });
});
