// Files beside the page.

async function fetched(file) {
  const answer = await fetch(new URL(file, new URL(".", location.href)), { cache: "no-store" });
  if (!answer.ok) {
    const told = (await answer.text()).trim().slice(0, 200);
    throw new Error(`${file} is not to be had: ${told || answer.status}`);
  }
  return answer;
}

export const fetchText = async (file) => (await fetched(file)).text();
export const fetchBytes = async (file) => (await fetched(file)).arrayBuffer();
export const fetchJSON = async (file) => (await fetched(file)).json();
