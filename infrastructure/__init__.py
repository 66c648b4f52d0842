"""How the function comes to Azure: the resources (Bicep), the pipeline's templates, the package, the verification."""

# The function's folder in the package, and its name in Azure.
FUNCTION = "GenerateInvoiceFunction"
