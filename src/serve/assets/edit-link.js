// On the report of a server: the way to the editor, at the prompt that is on screen.

import { el, byId } from "./dom.js";

const link = el("a", { class: "edit-link", href: "edit" }, "Edit");
byId("help").before(link);
const follow = () => link.setAttribute("href", `edit${location.hash}`);
window.addEventListener("hashchange", follow);
follow();
