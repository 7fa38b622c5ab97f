// A browser runs no search in a page that is opened from disk: there it is not shown (site.css).
document.documentElement.classList.toggle("from-disk", location.protocol === "file:");
