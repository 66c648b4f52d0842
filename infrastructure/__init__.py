"""How the function comes to Azure: the resources (Bicep), the pipeline's templates, the package, the verification."""
