"""The 2-D COVID-CT images: reading them, looking for flaws, adding to them."""
