"""The text of PDF files, read in a process of its own: such a file may be made to never end."""

from .reading import PdfText, read_pdf

__all__ = ["PdfText", "read_pdf"]
