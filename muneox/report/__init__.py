"""The report page: from the tools' JSON to sections, figures and tables, and from these to one HTML file."""
