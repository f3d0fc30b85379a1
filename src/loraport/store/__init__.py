"""What is kept between runs: singular bases, by the content of their weight."""
