"""What stands for google.colab where the tests pretend to be Colab."""
